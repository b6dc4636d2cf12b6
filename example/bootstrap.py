"""
Set up what the demo needs in .venvs/demo, then run it.

    python3 example/bootstrap.py [arguments for example/demo.py]

Any Python 3.7 or later can run this file. The demo runs with the newest Python
between 3.10 and 3.14 that works on this machine, or with the one that the
environment variable DEMO_PYTHON names; pip then chooses the newest Django for
it. A second run uses what the first has installed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
REQUIREMENTS = HERE / "requirements.txt"
VENV = HERE.parent / ".venvs" / "demo"
VERSIONS = ((3, 14), (3, 13), (3, 12), (3, 11), (3, 10))
# Says the version of a Python, and whether it can make environments: Debian
# has ensurepip in a package of its own.
PROBE = """
import sys, sysconfig
try:
    import ensurepip, venv
except ImportError:
    usable = 0
else:
    usable = 1
if sysconfig.get_config_var("Py_GIL_DISABLED"):
    # Most of the packages have no wheels for it.
    sys.exit(1)
print(*sys.version_info[:2], usable)
"""


def say(message: str) -> None:
    print("bootstrap: %s" % message, file=sys.stderr, flush=True)


def candidates() -> list[str]:
    """Return commands and paths that may be a suitable Python."""
    found = []
    for major, minor in VERSIONS:
        name = "python%d.%d" % (major, minor)
        # Not only the first on the PATH, which may be a shim that fails.
        for directory in os.get_exec_path():
            found.append(os.path.join(directory, name))
        root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
        pattern = "%d.%d.*/bin/python" % (major, minor)
        found += [str(path) for path in sorted(root.glob("versions/" + pattern))]
    found += [sys.executable, shutil.which("python3") or ""]
    return [path for path in dict.fromkeys(found) if path and os.path.exists(path)]


def probe(python: str) -> tuple[int, int, bool] | None:
    """Return a Python's version and whether it has venv and ensurepip."""
    try:
        result = subprocess.run(
            [python, "-c", PROBE],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            universal_newlines=True,
            timeout=30,
        )
        major, minor, usable = (int(word) for word in result.stdout.split())
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    return major, minor, bool(usable)


def suitable_pythons() -> tuple[list[str], list[tuple[int, int]]]:
    """
    Return the Pythons to try, the newest first, and the versions of those
    that only lack the venv module.
    """
    override = os.environ.get("DEMO_PYTHON")
    usable: dict[tuple[int, int], str] = {}
    incomplete: dict[tuple[int, int], str] = {}
    for python in [override] if override else candidates():
        probed = probe(python)
        if probed is None or probed[:2] not in VERSIONS:
            continue
        (usable if probed[2] else incomplete).setdefault(probed[:2], python)
    return (
        [usable[key] for key in sorted(usable, reverse=True)],
        sorted(incomplete, reverse=True),
    )


def install_venv_module() -> bool:
    """Install Debian's package of the venv module, if this is its root."""
    if os.name != "posix" or os.geteuid() != 0 or not shutil.which("apt-get"):
        return False
    say("installing the system's package python3-venv")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-y", "--no-install-recommends", "python3-venv"]
    # The lists of packages are missing on a fresh machine, but need not be
    # fetched again on others.
    for command in (install, ["apt-get", "update"], install):
        result = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL)
        if command is install and result.returncode == 0:
            return True
    return False


def find_pythons() -> list[str]:
    usable, incomplete = suitable_pythons()
    if not usable and incomplete and install_venv_module():
        usable, incomplete = suitable_pythons()
    if usable:
        return usable
    if incomplete:
        raise SystemExit(
            "Python %d.%d is here, but not its venv module. Install it (on "
            "Debian and Ubuntu: apt-get install python3-venv), or name another "
            "Python with DEMO_PYTHON=/path/to/python." % incomplete[0]
        )
    raise SystemExit(
        "The demo needs a Python between %d.%d and %d.%d that has the venv "
        "module, and found none. Install one, or name it with "
        "DEMO_PYTHON=/path/to/python." % (*VERSIONS[-1], *VERSIONS[0])
    )


def venv_python() -> Path:
    return VENV / "bin" / "python"


def runs(*command: str) -> bool:
    try:
        return subprocess.run(command).returncode == 0
    except OSError:
        return False


def make_environment(python: str, stamp: str) -> bool:
    """Make the environment with a Python and return whether that worked."""
    say("setting up %s with %s" % (VENV, python))
    # What an interrupted run has left is not worth repairing.
    shutil.rmtree(VENV, ignore_errors=True)
    VENV.parent.mkdir(parents=True, exist_ok=True)
    pip = [str(venv_python()), "-m", "pip", "--disable-pip-version-check"]
    if not (
        runs(python, "-m", "venv", str(VENV))
        and runs(*pip, "install", "--quiet", "-r", str(REQUIREMENTS))
    ):
        return False
    (VENV / "demo-stamp").write_text(stamp)
    return True


def ensure_environment() -> None:
    pythons = find_pythons()
    digest = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    stamp_file = VENV / "demo-stamp"
    stamps = ["%s %s" % (digest, python) for python in pythons]
    if (
        stamp_file.exists()
        and stamp_file.read_text() in stamps
        and runs(str(venv_python()), "-c", "import django, psycopg")
    ):
        return
    for python, stamp in zip(pythons, stamps):
        if make_environment(python, stamp):
            return
        # A new Python may not have all the wheels yet.
        say("that failed with %s" % python)
    raise SystemExit("The demo's requirements could not be installed.")


def main() -> None:
    try:
        ensure_environment()
    except KeyboardInterrupt:
        raise SystemExit(130)
    python = str(venv_python())
    # In place of this process, so that signals reach the demo.
    os.execv(python, [python, str(HERE / "demo.py"), *sys.argv[1:]])


if __name__ == "__main__":
    main()
