#!/usr/bin/env python3
"""
Make Django's source trees, as published and with the patch series applied.

    scripts/sdists.py 6.1.3             print the path of the pristine tree
    scripts/sdists.py 6.1.3 --patched   and of the patched one

They are kept in .cache/, in git repositories of their own. Only the standard
library, pip and git are needed.
"""

import argparse
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache"
PATCHES = ROOT / "patches"


class SdistFailure(Exception):
    pass


def get_series_name(version):
    """Return the name of a version's series: "django-6.1" for "6.1.3"."""
    return "django-%s" % ".".join(version.split(".")[:2])


def get_series(version):
    """Return the paths of the patches for a version, in order."""
    return sorted((PATCHES / get_series_name(version)).glob("*.patch"))


def ensure_pristine(version):
    """
    Return the path of a version's tree as published, a git repository with one
    commit. Fetch it if need be. Nobody may change it.
    """
    directory = CACHE / ("django-%s" % version)
    with lock("django-%s" % version):
        if not directory.exists():
            with make_directory(directory) as new:
                unpack(fetch(version), new)
                git(new, "init", "--quiet")
                git(new, "add", "--all", "--force")
                git(new, "commit", "--quiet", "-m", "Django %s" % version)
    return directory


def ensure_patched(version):
    """
    Return the path of a version's tree with its series applied by "git am".
    There's one tree for each state of the series.
    """
    return ensure_changed(version, "patched", ["am", "--quiet"])


def ensure_pristine_with_tests(version):
    """
    Return the path of a version's tree as published, but for the tests: to
    these the series is applied.
    """
    return ensure_changed(version, "tests", ["apply", "--include=tests/*"])


def ensure_changed(version, kind, command):
    """
    Return the path of a version's tree, changed by a git command that takes
    the patches of the series as its arguments.
    """
    series = get_series(version)
    if not series:
        raise SdistFailure("There are no patches for Django %s." % version)
    pristine = ensure_pristine(version)
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in series))
    name = "django-%s-%s-%s" % (version, kind, digest.hexdigest()[:12])
    directory = CACHE / name
    with lock(name):
        if not directory.exists():
            with make_directory(directory) as new:
                shutil.copytree(pristine, new, symlinks=True, dirs_exist_ok=True)
                git(new, *command, *map(str, series))
    return directory


def fetch(version):
    """Return the path of a version's sdist, downloaded by pip."""
    # Names of sdists changed from Django-5.2.tar.gz to django-5.2.1.tar.gz.
    # Versions end without ".0" in them.
    name = re.compile(
        r"django-%s\.tar\.gz" % re.escape(re.sub(r"^(\d+\.\d+)\.0$", r"\1", version)),
        re.IGNORECASE,
    )
    sdists = CACHE / "sdists"
    for attempt in range(2):
        for path in sdists.glob("*.tar.gz"):
            if name.fullmatch(path.name):
                return path
        if not attempt:
            run(
                sys.executable,
                "-m",
                "pip",
                "download",
                "--quiet",
                "--disable-pip-version-check",
                "--no-deps",
                "--no-binary=:all:",
                "--dest=%s" % sdists,
                "Django==%s" % version,
            )
    raise SdistFailure("pip downloaded no sdist of Django %s." % version)


def unpack(sdist, directory):
    """Unpack what is in the sdist's only directory."""
    with tempfile.TemporaryDirectory(dir=CACHE) as temporary:
        with tarfile.open(sdist) as archive:
            archive.extractall(temporary, filter="data")
        (content,) = Path(temporary).iterdir()
        shutil.copytree(content, directory, symlinks=True, dirs_exist_ok=True)


@contextmanager
def lock(name):
    """Let one process at a time make a directory."""
    CACHE.mkdir(exist_ok=True)
    with open(CACHE / (".%s.lock" % name), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def make_directory(directory):
    """Yield a new directory that gets its name only when it's complete."""
    new = directory.with_name(".%s.new" % directory.name)
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    yield new
    new.rename(directory)


def git(directory, *arguments, input=None, **variables):
    """
    Run git in a directory, whatever the user's configuration is. Return its
    output.
    """
    settings = [
        "user.name=django-pool-patch",
        "user.email=pool@localhost",
        "commit.gpgsign=false",
        "core.autocrlf=false",
        "core.hooksPath=",
        # It goes on in the background, while the tree is being copied.
        "gc.auto=0",
    ]
    options = [option for setting in settings for option in ("-c", setting)]
    command = ["git", *options, *arguments]
    return run(*command, cwd=directory, input=input, **variables)


def run(*command, cwd=None, input=None, **variables):
    """Run a command, with some environment variables. Return its output."""
    environment = {
        name: value for name, value in os.environ.items() if name[:4] != "GIT_"
    }
    result = subprocess.run(
        command,
        cwd=cwd,
        env={
            **environment,
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_NOSYSTEM": "1",
            **variables,
        },
        input=input,
        stdin=subprocess.DEVNULL if input is None else None,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    if result.returncode:
        raise SdistFailure(
            "Failed: %s\n%s%s" % (" ".join(command), result.stdout, result.stderr)
        )
    return result.stdout


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("version")
    parser.add_argument("--patched", action="store_true")
    arguments = parser.parse_args()
    ensure = ensure_patched if arguments.patched else ensure_pristine
    try:
        print(ensure(arguments.version))
    except SdistFailure as exc:
        sys.exit(str(exc))
