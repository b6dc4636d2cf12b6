"""
Part "serving": a site under load, by WSGI and by ASGI.

gunicorn has one process with 128 threads, uvicorn has one process. PostgreSQL
has max_connections=100, of which 97 are for the site; pools have at most 10
connections. The clients are in a process of their own, and each of them sends
its next request when the last was answered.
"""

import http.client
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from contextlib import ExitStack, closing, contextmanager
from time import monotonic, sleep

import processes
import servers
from measuring import percentile, rotated, summarize
from policies import REFERENCE, Sizes, get_label, select
from tables import Plot, Table, format_number, format_range, format_ratio
from workers import HERE, ROOT, Worker

NAME = "serving"
TITLE = "A site under load"

DATABASE = "serving"
# Not a superuser, who would get the connections that are reserved.
ROLE, PASSWORD = "site", "site-secret"
MAX_CONNECTIONS = 100
THREADS = 128

SERVER_NAMES = {"wsgi": "gunicorn (WSGI)", "asgi": "uvicorn (ASGI)"}
POLICY_NAMES = [
    "session",
    "transaction",
    "options",
    "pg-real-pool",
    "persistent",
    "none",
]

VIEWS = {
    "one": "one query",
    "pause": "query, 50 ms, query",
    "stream": "stream of %d queries",
}
CLIENTS = [8, 128, 512]

# Clients with a stream each, at the same time, and the pools' timeout then.
OPEN_STREAMS = "open streams"
STREAMS = 200
STREAM_TIMEOUT = 5.0

# Seconds.
START_TIMEOUT = 30
LOAD_TIMEOUT = 300
SAMPLE_INTERVAL = 0.1


class ServingError(Exception):
    pass


def get_command(server, port):
    if server == "wsgi":
        return [
            *(sys.executable, "-m", "gunicorn", "served:application"),
            "--bind=%s:%d" % (servers.LOCALHOST, port),
            "--worker-class=gthread",
            "--workers=1",
            "--threads=%d" % THREADS,
            "--keep-alive=30",
            "--graceful-timeout=3",
            "--timeout=120",
            "--backlog=2048",
            "--log-level=critical",
        ]
    return [
        *(sys.executable, "-m", "uvicorn", "served:application"),
        "--host=%s" % servers.LOCALHOST,
        "--port=%d" % port,
        "--lifespan=off",
        "--timeout-keep-alive=30",
        "--timeout-graceful-shutdown=3",
        "--backlog=2048",
        "--log-level=critical",
        "--no-access-log",
    ]


@contextmanager
def serving(server, policy, base, sizes, directory):
    """Serve the site. Yield its port."""
    port = servers.find_free_port()
    site = {
        "database": policy.get_settings(base, "postgresql", sizes),
        "has_overlay": policy.has_overlay,
        "root": str(ROOT),
        "server": server,
    }
    environment = {
        **os.environ,
        "BENCHMARK_SITE": json.dumps(site),
        # The module is served by its name.
        "PYTHONPATH": str(HERE),
        # gunicorn puts its control socket there.
        "XDG_RUNTIME_DIR": directory,
    }
    with open(os.path.join(directory, "server.log"), "w+") as log:
        with processes.running(
            get_command(server, port),
            env=environment,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        ) as process:
            try:
                wait_until_ready(process, port)
            except ServingError:
                log.seek(0)
                print("".join(log.readlines()[-25:]), file=sys.stderr)
                raise
            yield port


def wait_until_ready(process, port):
    deadline = monotonic() + START_TIMEOUT
    while monotonic() < deadline:
        if process.poll() is not None:
            raise ServingError("The server ended with status %d." % process.returncode)
        connection = http.client.HTTPConnection(servers.LOCALHOST, port, timeout=20)
        try:
            with closing(connection):
                connection.request("GET", "/ready/")
                if connection.getresponse().status == 200:
                    return
        except (OSError, http.client.HTTPException):
            sleep(0.02)
    raise ServingError("The server isn't ready after %d seconds." % START_TIMEOUT)


def send_load(worker, port, path, clients, seconds):
    """Return what the clients counted."""
    return worker.call(
        "load.send",
        timeout=LOAD_TIMEOUT,
        url="http://%s:%d/%s" % (servers.LOCALHOST, port, path),
        clients=clients,
        seconds=seconds,
        is_stream=path.startswith("stream"),
    )


class Sampler:
    """Counts the site's connections in a thread, over one of its own."""

    def __init__(self, server):
        self.connection = server.connect()
        self.most = 0
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, exc_type, exc_value, traceback):
        self.stopped.set()
        self.thread.join()
        self.connection.close()

    def count(self):
        with self.connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE usename = %s", [ROLE]
            )
            return cursor.fetchone()[0]

    def run(self):
        while True:
            self.most = max(self.most, self.count())
            if self.stopped.wait(SAMPLE_INTERVAL):
                return


def make_base(server):
    """Make the site's role and database. Return its settings."""
    server.create_database(DATABASE)
    server.execute("CREATE ROLE %s LOGIN PASSWORD '%s'" % (ROLE, PASSWORD))
    return {**server.settings(DATABASE), "USER": ROLE, "PASSWORD": PASSWORD}


class Plan:
    """How much is measured."""

    def __init__(self, quick):
        self.rounds = 1 if quick else 3
        self.seconds = 0.1 if quick else 4
        self.clients = [16] if quick else CLIENTS
        # A server is new for each of these groups of views.
        views = [*VIEWS, OPEN_STREAMS]
        self.groups = [views] if quick else [[view] for view in views]
        self.streams = 30 if quick else STREAMS
        # Seconds between the chunks, and a query for each.
        chunks, pause = (4, 0.02) if quick else (20, 0.05)
        self.stream = {"chunks": chunks, "pause": pause}
        self.stream_path = "stream/?chunks=%d&pause=%s" % (chunks, pause)

    def get_loads(self, views):
        """Return [(view, path, clients, seconds)]."""
        loads = []
        for view in views:
            if view == OPEN_STREAMS:
                loads.append((view, self.stream_path, self.streams, None))
                continue
            path = self.stream_path if view == "stream" else "%s/" % view
            loads += [(view, path, clients, self.seconds) for clients in self.clients]
        return loads


def measure(postgresql, base, worker, plan, server, policy, views, directory):
    """Return [(view, clients, counts)] of one server."""
    sizes = Sizes(timeout=STREAM_TIMEOUT) if OPEN_STREAMS in views else Sizes()
    results = []
    with serving(server, policy, base, sizes, directory) as port:
        # Whatever happens at the first request only.
        send_load(worker, port, "one/", 8, 0.1)
        for view, path, clients, seconds in plan.get_loads(views):
            with Sampler(postgresql) as sampler:
                counts = send_load(worker, port, path, clients, seconds)
            times = counts.pop("times")
            results.append(
                (
                    view,
                    clients,
                    {
                        **counts,
                        "rate": counts["in_time"] / (seconds or counts["elapsed"]),
                        "p50": percentile(times, 50),
                        "p99": percentile(times, 99),
                        "longest": times[-1] if times else None,
                        "connections": sampler.most,
                    },
                )
            )
    return results


def run(context):
    plan = Plan(context.quick)
    selected, left_out = select(POLICY_NAMES)
    result = {
        "loads": [],
        "streams": [],
        "stream": plan.stream,
        "left_out": left_out,
    }
    for module in ("uvloop", "httptools"):
        if importlib.util.find_spec(module) is None:
            left_out.append("uvicorn goes without %s: it isn't installed." % module)
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        postgresql = context.start_server(
            stack, "postgresql", left_out, max_connections=MAX_CONNECTIONS
        )
        if postgresql is None:
            return result
        base = make_base(postgresql)
        worker = stack.enter_context(Worker("clients"))
        cells, failed = {}, set()
        for number in range(plan.rounds):
            for server in SERVER_NAMES:
                for views in plan.groups:
                    context.say(
                        "round %d, %s: %s"
                        % (number + 1, SERVER_NAMES[server], ", ".join(views))
                    )
                    for name in rotated(list(selected), number):
                        if name in failed:
                            continue
                        try:
                            counted = measure(
                                postgresql,
                                base,
                                worker,
                                plan,
                                server,
                                selected[name],
                                views,
                                directory,
                            )
                        except ServingError as e:
                            failed.add(name)
                            left_out.append(
                                "%s is left out: %s" % (selected[name].label, e)
                            )
                            continue
                        for view, clients, counts in counted:
                            cell = cells.setdefault((server, view, clients), {})
                            cell.setdefault(name, []).append(counts)
                        wait_until_alone(postgresql)
    for cell in cells.values():
        for name in failed:
            cell.pop(name, None)
    for (server, view, clients), cell in cells.items():
        rates = {name: [c["rate"] for c in own] for name, own in cell.items()}
        result["streams" if view == OPEN_STREAMS else "loads"].append(
            {
                "server": server,
                "view": view,
                "clients": clients,
                "rates": summarize(rates, REFERENCE),
                "policies": {name: summarize_load(own) for name, own in cell.items()},
            }
        )
    return result


def wait_until_alone(postgresql):
    """Wait until the server has noticed that a site has ended."""
    postgresql.wait_for_connection_count(0, DATABASE)


def summarize_load(rounds):
    """Return the figures of all rounds: medians, the highest, and sums."""
    errors = Counter()
    for counts in rounds:
        errors.update(counts["errors"])
    summary = {
        "answered": sum(counts["answered"] for counts in rounds),
        "errors": dict(errors),
        "connections": max(counts["connections"] for counts in rounds),
        "rounds": rounds,
    }
    for key in ("p50", "p99"):
        own = sorted(c[key] for c in rounds if c[key] is not None)
        summary[key] = percentile(own, 50)
    summary["longest"] = max(
        (c["longest"] for c in rounds if c["longest"] is not None), default=None
    )
    return summary


def format_errors(errors):
    if not errors:
        return "none"
    return ", ".join("%s: %d" % item for item in sorted(errors.items()))


def format_milliseconds(seconds):
    return format_number(None if seconds is None else seconds * 1e3)


def get_tables(result):
    tables = [get_load_table(entry, result) for entry in result["loads"]]
    if result["streams"]:
        tables.append(get_stream_table(result["streams"], result["stream"]))
    return tables


def describe_view(view, result):
    """Return what a view does, with the stream's length."""
    return VIEWS[view].replace("%d", str(result["stream"]["chunks"]))


def get_load_table(entry, result):
    rows = []
    for name, figures in entry["policies"].items():
        rate = entry["rates"][name]
        rows.append(
            [
                get_label(name),
                format_range(rate),
                "1" if name == REFERENCE else format_ratio(rate["ratio"]),
                format_milliseconds(figures["p50"]),
                format_milliseconds(figures["p99"]),
                format_milliseconds(figures["longest"]),
                str(figures["answered"]),
                format_errors(figures["errors"]),
                str(figures["connections"]),
            ]
        )
    rows.sort(key=lambda row: [get_label(n) for n in POLICY_NAMES].index(row[0]))
    return Table(
        "%s, %s, %d clients"
        % (
            SERVER_NAMES[entry["server"]],
            describe_view(entry["view"], result),
            entry["clients"],
        ),
        [
            "",
            "answers/s",
            "times POOL's",
            "p50 ms",
            "p99 ms",
            "longest ms",
            "answers",
            "errors",
            "most connections",
        ],
        rows,
    )


def get_stream_table(entries, stream):
    rows = []
    for entry in entries:
        for name in POLICY_NAMES:
            if (figures := entry["policies"].get(name)) is None:
                continue
            rows.append(
                [
                    SERVER_NAMES[entry["server"]],
                    get_label(name),
                    "%d of %d"
                    % (figures["answered"], entry["clients"] * len(figures["rounds"])),
                    format_errors(figures["errors"]),
                    format_number(figures["longest"]),
                    str(figures["connections"]),
                ]
            )
    return Table(
        "%d open streams" % entries[0]["clients"],
        ["", "", "complete", "failed", "longest s", "most connections"],
        rows,
        "Each client has one stream of %d chunks, %.0f ms apart, with a query for "
        "each chunk, all at once. Pools wait for at most %.0f seconds. gunicorn "
        "serves as many at a time as it has threads. The sum of all rounds."
        % (stream["chunks"], stream["pause"] * 1e3, STREAM_TIMEOUT),
    )


def get_plots(result):
    plots = []
    for server in SERVER_NAMES:
        groups = [
            (
                "%s, %d clients"
                % (describe_view(entry["view"], result), entry["clients"]),
                entry["rates"],
            )
            for entry in result["loads"]
            if entry["server"] == server
        ]
        if groups:
            plots.append(
                Plot.of_groups(
                    "serving-%s" % server,
                    "%s, answers without an error" % SERVER_NAMES[server],
                    "answers per second",
                    groups,
                    get_label,
                    logarithmic=False,
                )
            )
    return plots
