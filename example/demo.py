"""
Compare how a Django site gets its database connections, on this machine.

Start a private PostgreSQL server and the demo site under gunicorn (WSGI, one
worker with 32 threads) and uvicorn (ASGI, one process), once for each mode in
demosite/settings.py; send each the same requests from many clients at once,
and count the connections that the database server sees meanwhile.

Exit with 0 only if everything was measured, no request to the site with POOL
failed, and no such site had more than max_size connections open.

    python3 example/bootstrap.py            set up what is needed, then this
    python3 example/demo.py --quick         this, in the current environment
"""

from __future__ import annotations

import argparse
import http.client
import json
import math
import os
import platform
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psycopg
from embedded_postgres import EmbeddedPostgres, PostgresError, free_port
from psycopg import sql

HERE = Path(__file__).resolve().parent
DATABASE = ROLE = "demo"
MAX_CONNECTIONS = 60
# max_size in demosite/settings.py.
MAX_SIZE = 10
THREADS = 32
SAMPLE_SECONDS = 0.02
START_SECONDS = 30
MODES = {
    "none": "no pool",
    "options": 'OPTIONS["pool"]',
    "pool": "POOL",
}
SERVERS = {"wsgi": "gunicorn (WSGI)", "asgi": "uvicorn (ASGI)"}


class DemoError(Exception):
    pass


@dataclass
class Row:
    server: str
    mode: str
    problem: str = ""
    elapsed: float = 0.0
    ok: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    max_connections: int = 0
    opened: int = 0
    log_lines: Counter[str] = field(default_factory=Counter)

    @property
    def name(self) -> str:
        return "%s, %s" % (SERVERS[self.server], MODES[self.mode])

    def percentile_ms(self, percent: float) -> float:
        """Return the nearest-rank percentile of the answered requests."""
        if not self.seconds:
            return math.nan
        ordered = sorted(self.seconds)
        rank = max(math.ceil(len(ordered) * percent / 100), 1)
        return ordered[rank - 1] * 1000

    def cells(self) -> tuple[str, ...]:
        names = SERVERS[self.server], MODES[self.mode]
        if self.problem:
            return (*names, *["not measured"], *["-"] * 5)
        return (
            *names,
            "%.0f" % (self.ok / self.elapsed),
            "%.0f" % self.percentile_ms(50),
            "%.0f" % self.percentile_ms(99),
            "%d" % self.errors.total() if self.errors else "0",
            "%d" % self.max_connections,
            "%d" % self.opened,
        )


HEADINGS = (
    "server",
    "mode",
    "requests/s",
    "p50 ms",
    "p99 ms",
    "errors",
    "max conns",
    "opened",
)


class Database:
    """The demo's own connection, which is not one of those counted."""

    def __init__(self, postgres: EmbeddedPostgres) -> None:
        self.postgres = postgres
        self.role_password = secrets.token_urlsafe(24)
        # To another database than the site's, for pg_stat_database. As the
        # superuser it gets in even when there are too many clients.
        self.connection = self.connect("postgres")

    def connect(self, dbname: str) -> psycopg.Connection[Any]:
        return psycopg.connect(
            host=self.postgres.host,
            port=self.postgres.port,
            dbname=dbname,
            user=self.postgres.superuser,
            password=self.postgres.password,
            autocommit=True,
            connect_timeout=10,
        )

    def create(self) -> None:
        self.connection.execute(
            sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(
                sql.Identifier(ROLE), sql.Literal(self.role_password)
            )
        )
        self.connection.execute(
            sql.SQL("CREATE DATABASE {} OWNER {}").format(
                sql.Identifier(DATABASE), sql.Identifier(ROLE)
            )
        )

    def value(self, query: str) -> Any:
        row = self.connection.execute(query).fetchone()
        assert row is not None
        return row[0]

    def connections(self) -> int:
        """Return how many clients are connected, besides the demo itself."""
        return int(
            self.value(
                "SELECT count(*) FROM pg_stat_activity "
                "WHERE backend_type = 'client backend' "
                "AND pid <> pg_backend_pid()"
            )
        )

    def opened(self) -> int:
        """Return how many connections the site's database ever had."""
        return int(
            self.value(
                "SELECT coalesce(sum(sessions), 0) FROM pg_stat_database "
                "WHERE datname = '%s'" % DATABASE
            )
        )

    def visits(self) -> int:
        with self.connect(DATABASE) as connection:
            row = connection.execute("SELECT sum(visits) FROM guestbook_guest")
            return int(row.fetchone()[0])  # type: ignore[index]

    def wait_until_alone(self) -> None:
        deadline = time.monotonic() + 15
        while self.connections():
            if time.monotonic() > deadline:
                raise DemoError("A stopped server's connections did not go away.")
            time.sleep(SAMPLE_SECONDS)

    @contextmanager
    def sampling(self) -> Iterator[list[int]]:
        """Count the connections during the block, from another thread."""
        samples: list[int] = []
        failures: list[Exception] = []
        stop = threading.Event()

        def sample() -> None:
            try:
                while not stop.wait(SAMPLE_SECONDS):
                    samples.append(self.connections())
            except Exception as exc:
                failures.append(exc)

        thread = threading.Thread(target=sample, name="sampler", daemon=True)
        thread.start()
        try:
            yield samples
        finally:
            stop.set()
            thread.join()
        if failures:
            raise DemoError("Counting connections failed: %s" % failures[0])


def stop_process(process: subprocess.Popen[Any]) -> None:
    """Stop a process that was started as the leader of its own group."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout=8)
        except subprocess.TimeoutExpired:
            pass
    # Workers that outlive their parent would go on using the database.
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


@contextmanager
def started(command: list[str], **kwargs: Any) -> Iterator[subprocess.Popen[Any]]:
    process = subprocess.Popen(
        command,
        cwd=HERE,
        stdin=subprocess.DEVNULL,
        # Ctrl-C is for the demo, which stops the others in order.
        start_new_session=True,
        **kwargs,
    )
    try:
        yield process
    finally:
        stop_process(process)


def server_command(server: str, port: int) -> list[str]:
    if server == "wsgi":
        return [
            *(sys.executable, "-m", "gunicorn", "demosite.wsgi:application"),
            "--bind=127.0.0.1:%d" % port,
            "--worker-class=gthread",
            "--workers=1",
            "--threads=%d" % THREADS,
            "--keep-alive=30",
            "--graceful-timeout=3",
            "--log-level=warning",
        ]
    return [
        *(sys.executable, "-m", "uvicorn", "demosite.asgi:application"),
        "--host=127.0.0.1",
        "--port=%d" % port,
        "--lifespan=off",
        "--timeout-keep-alive=30",
        "--timeout-graceful-shutdown=3",
        "--log-level=warning",
        "--no-access-log",
    ]


def request(port: int, method: str, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


def wait_until_ready(process: subprocess.Popen[Any], port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise DemoError("the server ended with status %d" % process.returncode)
        try:
            status = request(port, "GET", "/ready/")
        except (OSError, http.client.HTTPException):
            time.sleep(0.05)
            continue
        if status != 200:
            raise DemoError("/ready/ was answered with status %d" % status)
        return
    raise DemoError("the server did not answer within %d seconds" % START_SECONDS)


def log_summary(log: Path) -> tuple[Counter[str], str]:
    """Return the log's errors with their numbers, and the log's last lines."""
    lines = log.read_text(errors="replace").splitlines()
    errors: Counter[str] = Counter()
    for line in lines:
        if " | " in line:
            message = line.partition(" | ")[2]
            message = message.replace("connection failed: ", "")
            message = re.sub(
                r'connection to server at ".*?", port \d+ failed: ', "", message
            )
            # Some messages differ only by how many were waiting and the like.
            errors[re.sub(r"\b\d+(\.\d+)?\b", "N", message)] += 1
    return errors, "\n".join(lines[-6:])


def measure(
    server: str,
    mode: str,
    database: Database,
    environment: dict[str, str],
    directory: Path,
    args: argparse.Namespace,
) -> Row:
    row = Row(server, mode)
    log = directory / ("%s-%s.log" % (server, mode))
    prefix = "/async" if server == "asgi" else ""
    port = free_port()
    visits_before = database.visits()
    database.wait_until_alone()
    opened_before = database.opened()
    try:
        with (
            database.sampling() as samples,
            open(log, "wb") as log_file,
            started(
                server_command(server, port),
                env={**environment, "POOL_DEMO_MODE": mode},
                stdout=log_file,
                stderr=log_file,
            ) as process,
        ):
            wait_until_ready(process, port)
            # The first request of each kind imports modules.
            for method, path in (
                ("GET", "/guests/"),
                ("POST", "/guests/1/visit/"),
                ("GET", "/guests/1/slow/"),
            ):
                status = request(port, method, prefix + path)
                if status != 200:
                    raise DemoError("%s was answered with %d" % (path, status))
            with started(
                [
                    *(sys.executable, str(HERE / "loadclient.py")),
                    *("--port", str(port), "--prefix", prefix),
                    *("--clients", str(args.clients)),
                    *("--seconds", str(args.seconds)),
                    *("--limit", str(args.limit)),
                ],
                stdout=subprocess.PIPE,
                text=True,
            ) as client:
                output, _ = client.communicate(timeout=args.seconds + 30)
                if client.returncode:
                    raise DemoError("the client failed")
            result = json.loads(output)
            if process.poll() is not None:
                raise DemoError("the server ended during the measurement")
        database.wait_until_alone()
    except (DemoError, OSError, subprocess.TimeoutExpired) as exc:
        row.problem = str(exc)
        if log.exists():
            tail = log_summary(log)[1]
            row.problem += ("; its log ends with\n%s" % tail) if tail else ""
        return row
    row.elapsed = result["elapsed"]
    row.seconds = result["seconds"]
    row.ok = len(row.seconds)
    row.errors = Counter(result["errors"])
    row.max_connections = max(samples)
    row.opened = database.opened() - opened_before
    row.log_lines = log_summary(log)[0]
    if not row.ok:
        row.problem = "no request was answered with 200"
        return row
    # A machine too busy to count could hide connections.
    if len(samples) < 5 * row.elapsed:
        row.problem = "the connections were counted only %d times" % len(samples)
        return row
    if not row.errors:
        # One visit was made before the clients started.
        expected = 1 + result["ok"].get("visit", 0)
        written = database.visits() - visits_before
        if written != expected:
            row.errors["%d visits, but %d counted" % (expected, written)] += 1
    return row


def print_table(rows: list[Row]) -> None:
    lines = [HEADINGS, *(row.cells() for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADINGS))]
    for number, line in enumerate(lines):
        cells = [
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths))
        ]
        print("  ".join(cells).rstrip())
        if number == 0:
            print("  ".join("-" * width for width in widths))


def judge(rows: list[Row]) -> list[str]:
    """Return why the demo has failed, if it has."""
    reasons = []
    for row in rows:
        if row.problem:
            reasons.append("%s was not measured: %s" % (row.name, row.problem))
        elif row.mode == "pool":
            if row.errors:
                reasons.append("%s had %d errors." % (row.name, row.errors.total()))
            if row.max_connections > MAX_SIZE:
                reasons.append(
                    "%s had %d connections, more than max_size=%d."
                    % (row.name, row.max_connections, MAX_SIZE)
                )
    return reasons


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def print_versions(database: Database, args: argparse.Namespace) -> None:
    print(
        "Python %s, Django %s, psycopg %s (%s), psycopg_pool %s, PostgreSQL %s"
        % (
            platform.python_version(),
            installed("Django"),
            psycopg.__version__,
            psycopg.pq.__impl__,
            installed("psycopg-pool"),
            database.value("SHOW server_version"),
        )
    )
    print(
        "gunicorn %s with %d threads, uvicorn %s with one process, %d CPUs"
        % (
            installed("gunicorn"),
            THREADS,
            installed("uvicorn"),
            os.cpu_count() or 0,
        )
    )
    print(
        "%d clients for %g seconds each; PostgreSQL with max_connections=%d, "
        "fsync=off; pools with max_size=%d"
        % (args.clients, args.seconds, MAX_CONNECTIONS, MAX_SIZE)
    )
    print(flush=True)


def run(args: argparse.Namespace) -> int:
    with (
        tempfile.TemporaryDirectory(prefix="pool-demo-logs-") as name,
        EmbeddedPostgres(
            max_connections=MAX_CONNECTIONS,
            # Nobody needs the data after the demo, and the disk's speed is
            # not what is to be measured.
            fsync="off",
        ) as postgres,
    ):
        directory = Path(name)
        database = Database(postgres)
        database.create()
        environment = {
            **os.environ,
            "PGHOST": postgres.host,
            "PGPORT": str(postgres.port),
            "PGDATABASE": DATABASE,
            "PGUSER": ROLE,
            "PGPASSWORD": database.role_password,
            "DJANGO_SETTINGS_MODULE": "demosite.settings",
            "POOL_DEMO_MODE": "none",
            # gunicorn puts its control socket there.
            "XDG_RUNTIME_DIR": name,
        }
        print_versions(database, args)
        with started(
            [sys.executable, "manage.py", "migrate", "--verbosity=0"],
            env=environment,
        ) as migrate:
            if migrate.wait(timeout=60):
                raise DemoError("The migration failed.")
        rows = []
        for server in args.servers:
            for mode in args.modes:
                print("Measuring %s, %s ..." % (SERVERS[server], MODES[mode]))
                sys.stdout.flush()
                rows.append(
                    measure(server, mode, database, environment, directory, args)
                )
        database.connection.close()
    print()
    print_table(rows)
    print()
    print(
        "How to read it: POOL should answer more requests per second than no "
        "pool, sooner\n(p50, p99) and without errors, while the database never "
        "sees more than %d connections\nat once (max conns) and rarely has to "
        "make a new one (opened)." % MAX_SIZE
    )
    for row in rows:
        if row.errors and not row.problem:
            print()
            print("Errors of %s:" % row.name)
            for text, count in (row.errors + row.log_lines).most_common(4):
                print("  %6d  %s" % (count, text))
    reasons = judge(rows)
    print()
    for reason in reasons:
        print("FAILED: %s" % reason)
    if not reasons:
        measured = any(row.mode == "pool" for row in rows)
        print("OK" if measured else "OK, but POOL was not to be measured.")
    return 1 if reasons else 0


def positive(text: str) -> float:
    value = float(text)
    if not 0 < value <= 600:
        raise argparse.ArgumentTypeError("must be more than 0, and at most 600")
    return value


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="2 seconds per row")
    parser.add_argument("--seconds", type=positive, help="per row; default 6")
    parser.add_argument("--clients", type=int, default=64, help="default 64")
    parser.add_argument(
        "--limit", type=int, default=50_000, help="requests per row; default 50000"
    )
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--servers", nargs="+", choices=SERVERS, default=list(SERVERS))
    args = parser.parse_args()
    if args.seconds is None:
        args.seconds = 2.0 if args.quick else 6.0
    return args


HANDLED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def interrupted(number: int, frame: object) -> None:
    # Once is enough: another one must not interrupt the cleaning up.
    for handled in HANDLED_SIGNALS:
        signal.signal(handled, signal.SIG_IGN)
    raise KeyboardInterrupt


def main() -> int:
    args = parse_arguments()
    # Being terminated cleans up as Ctrl-C does.
    for handled in HANDLED_SIGNALS:
        signal.signal(handled, interrupted)
    try:
        return run(args)
    except (DemoError, PostgresError, psycopg.Error) as exc:
        print("FAILED: %s" % exc, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted; everything was stopped.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
