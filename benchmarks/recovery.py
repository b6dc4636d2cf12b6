"""
Part "recovery": when the server has closed all connections, and when many ask
at once.

The server terminates all connections of a pool at rest, and requests follow
one by one, each `SELECT 1` and `close_old_connections()`. In the spike,
threads come at the same time upon a pool with few connections open, and
connecting is slow.
"""

import statistics
import threading
from contextlib import ExitStack
from time import monotonic, perf_counter, sleep

import servers
from measuring import Runner, rotated, summarize
from policies import REFERENCE, VENDORS, Sizes, get_label, select
from requests_ import query, set_up
from services import DelayingProxy
from tables import Plot, Table, format_number, format_range, format_ratio
from workers import Worker, WorkerError, start_workers

NAME = "recovery"
TITLE = "After a failure, and under a spike"

DATABASE = "recovery"
# Connects whose median is the normal time to connect.
CONNECTS = 15
# Seconds of rest before each of them. The first request comes after a rest
# too, when caches and processors have turned to something else.
REST = 0.05
# Requests after the connections were closed.
REQUESTS = 40
# How many connections are closed.
SIZES = [10, 50]
# Seconds after which a repetition is given up.
TIMEOUT = 1800

CLIENTS = {
    "postgresql": servers.PostgreSQLClient,
    "mysql": servers.MariaDBClient,
}

# Those whose requests may wait for long after such a failure are measured
# only once, and not in quick runs.
RECOVERING = ["session", "transaction", "dj-db-conn-pool"]
SLOWLY_RECOVERING = ["options-checked"]

SPIKE_THREADS = 50
# Seconds.
SPIKE_DELAY = 0.15
SPIKE_QUERY = 0.002
SPIKE_SIZES = Sizes(min_size=5, max_size=50)
SPIKE_POLICIES = [
    "session",
    "transaction",
    "options",
    "pg-real-pool",
    "dj-db-conn-pool",
    "none",
]


# In a worker: recovery.


def set_up_recovery(vendor, credentials, database, unpooled, has_overlay):
    """Set up Django with a pool, and with an alias that has none."""
    from django.db import connections

    global client
    client = CLIENTS[vendor](**credentials)
    set_up(database, has_overlay)
    connections.settings["unpooled"] = connections.configure_settings(
        {"default": unpooled}
    )["default"]
    # Whatever happens only once in a process.
    connect()


def recover(size):
    """Return the figures of one repetition, in milliseconds."""
    warm_up(size)
    # The pool has to be at rest, lest its connecting slow down the others'.
    client.wait_for_connection_count(size, DATABASE)
    in_a_row = statistics.median(connect() for _ in range(CONNECTS))
    connecting = statistics.median(connect(rest=REST) for _ in range(CONNECTS))
    # Servers notice only a little later that a connection was closed.
    opened = client.wait_for_connection_count(size, DATABASE)
    terminated = terminate_all()
    times, errors = [], []
    for _ in range(REQUESTS):
        begun_at = perf_counter()
        error = request()
        times.append((perf_counter() - begun_at) * 1e3)
        if error is not None:
            errors.append("%s: %s" % (type(error).__name__, error))
    return {
        "opened": opened,
        "terminated": terminated,
        "in_a_row": in_a_row,
        "connect": connecting,
        "failed": len(errors),
        "error": errors[0] if errors else None,
        "first": times[0],
        "ratio": times[0] / connecting,
        "slowest_other": max(times[1:]),
    }


def end_recovery():
    """Close all connections, for the next worker's are counted."""
    from django.db import connection, connections

    connections.close_all()
    if hasattr(connection, "close_pool"):
        connection.close_pool()
    terminate_all()


def terminate_all():
    """Have the server close all connections. Return how many there were."""
    if client.vendor != "postgresql":
        return client.terminate_connections(DATABASE)
    # The client waits for one after the other, a tenth of a second each.
    rows = client.execute(
        "SELECT pg_terminate_backend(pid) %s" % client.client_connections,
        {"database": DATABASE},
    )
    client.wait_for_connection_count(0, DATABASE)
    return len(rows)


def connect(rest=0):
    """Return the milliseconds that it takes to connect without a pool."""
    from django.db import connections

    connection = connections["unpooled"]
    sleep(rest)
    begun_at = perf_counter()
    connection.connect()
    milliseconds = (perf_counter() - begun_at) * 1e3
    connection.close()
    return milliseconds


def warm_up(size):
    """Have all connections of the pool in use at the same time, once."""
    from django.db import connection, transaction

    barrier = threading.Barrier(size)

    def use(deadline):
        try:
            # A connection isn't given back within a transaction.
            with transaction.atomic():
                query()
                barrier.wait(60)
        finally:
            connection.close()

    Runner(use, size)()


def request():
    """Do as a request does. Return the exception that it failed with."""
    from django.db import close_old_connections

    close_old_connections()
    try:
        query()
    except Exception as e:
        return e
    finally:
        close_old_connections()
    return None


# In a worker: the spike.


def prepare_spike():
    """Have the pool open what it keeps open."""
    from django.db import close_old_connections

    query()
    close_old_connections()


def spike(threads, seconds):
    """Return the seconds that each of many threads takes for a query."""
    from django.db import close_old_connections, connection

    def use(deadline):
        begun_at = perf_counter()
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_sleep(%s)", [seconds])
                cursor.fetchone()
            return perf_counter() - begun_at, None
        except Exception as e:
            return perf_counter() - begun_at, type(e).__name__
        finally:
            close_old_connections()

    results, _ = Runner(use, threads)()
    return results


# In the process that was started by the user: recovery.


def measure_recovery(context, vendor, server, result):
    repetitions = 1 if context.quick else 5
    names = RECOVERING + ([] if context.quick else SLOWLY_RECOVERING)
    selected, left_out = select(names, vendor)
    result["left_out"] += left_out
    base = server.settings(DATABASE)
    for size in SIZES[:1] if context.quick else SIZES:
        context.say("%s, %d connections" % (VENDORS[vendor], size))
        figures = {name: [] for name in selected}
        for number in range(repetitions):
            for name in rotated(list(selected), number):
                if number and name in SLOWLY_RECOVERING:
                    continue
                sizes = Sizes(min_size=size, max_size=size)
                policy = selected[name]
                # One at a time, for the database's connections are counted.
                with Worker(get_label(name)) as worker:
                    try:
                        worker.call(
                            "recovery.set_up_recovery",
                            vendor=vendor,
                            credentials=server.credentials(),
                            database=policy.get_settings(base, vendor, sizes),
                            unpooled=base,
                            has_overlay=policy.has_overlay,
                        )
                        repetition = worker.call(
                            "recovery.recover", timeout=TIMEOUT, size=size
                        )
                        worker.call("recovery.end_recovery")
                    except WorkerError as e:
                        result["left_out"].append(
                            "%s, %s, %d connections: %s"
                            % (VENDORS[vendor], get_label(name), size, e)
                        )
                        continue
                figures[name].append(repetition)
        for name, own in figures.items():
            if own:
                result["recovery"].append(
                    {
                        "vendor": vendor,
                        "policy": name,
                        "size": size,
                        "repetitions": own,
                    }
                )


# In the process that was started by the user: the spike.


def measure_spike(context, server, result):
    rounds = 1 if context.quick else 5
    selected, left_out = select(SPIKE_POLICIES)
    result["left_out"] += left_out
    figures = {name: [] for name in selected}
    for number in range(rounds):
        context.say("spike, round %d" % (number + 1))
        for name in rotated(list(selected), number):
            try:
                figures[name].append(run_spike(server, name, selected[name]))
            except WorkerError as e:
                result["left_out"].append("Spike, %s: %s" % (get_label(name), e))
    figures = {name: own for name, own in figures.items() if own}
    result["spike"] = {
        name: {
            "longest": summary,
            "open": [spike["open"] for spike in figures[name]],
            "opened": [spike["opened"] for spike in figures[name]],
            "errors": sum(spike["errors"] for spike in figures[name]),
        }
        for name, summary in summarize(
            {name: [s["longest"] for s in own] for name, own in figures.items()},
            REFERENCE,
        ).items()
    }


def run_spike(server, name, policy):
    with DelayingProxy(server.host, server.port, SPIKE_DELAY) as proxy:
        base = {**server.settings(DATABASE), "PORT": str(proxy.port)}
        setup = {
            "function": "requests_.set_up",
            "database": policy.get_settings(base, "postgresql", SPIKE_SIZES),
            "has_overlay": policy.has_overlay,
        }
        with start_workers({name: setup}) as (workers, problems):
            if problems:
                raise WorkerError(problems[name])
            worker = workers[name]
            worker.call("recovery.prepare_spike")
            wait_until_at_rest(proxy)
            opened_before = proxy.opened
            results = worker.call(
                "recovery.spike", threads=SPIKE_THREADS, seconds=SPIKE_QUERY
            )
            # What is being opened counts as well, once it's there.
            wait_until_at_rest(proxy)
            return {
                "longest": max(seconds for seconds, _ in results) * 1e3,
                "median": statistics.median(seconds for seconds, _ in results) * 1e3,
                "open": proxy.open,
                "opened": proxy.opened - opened_before,
                "errors": sum(error is not None for _, error in results),
            }


def wait_until_at_rest(proxy):
    """Wait until no connection has come or gone for a while."""
    deadline = monotonic() + 20
    seen, since = None, monotonic()
    while monotonic() < deadline:
        if (now := (proxy.open, proxy.opened)) != seen:
            seen, since = now, monotonic()
        elif monotonic() - since > 4 * SPIKE_DELAY:
            return
        sleep(0.01)


def run(context):
    result = {"recovery": [], "spike": {}, "left_out": []}
    for vendor in CLIENTS:
        with ExitStack() as stack:
            server = context.start_server(stack, vendor, result["left_out"])
            if server is None:
                continue
            server.create_database(DATABASE)
            measure_recovery(context, vendor, server, result)
            if vendor == "postgresql":
                measure_spike(context, server, result)
    return result


def get_tables(result):
    rows = []
    for entry in result["recovery"]:
        own = entry["repetitions"]

        def median(key):
            return format_number(statistics.median(each[key] for each in own))

        rows.append(
            [
                VENDORS[entry["vendor"]],
                str(entry["size"]),
                get_label(entry["policy"]),
                str(len(own)),
                median("in_a_row"),
                median("connect"),
                "%d of %d" % (sum(e["failed"] for e in own), REQUESTS * len(own)),
                median("first"),
                median("ratio"),
                format_number(max(each["ratio"] for each in own)),
                format_number(max(each["slowest_other"] for each in own)),
                "yes" if all(e["terminated"] == entry["size"] for e in own) else "no",
            ]
        )
    tables = [
        Table(
            "All connections terminated, milliseconds",
            [
                "",
                "connections",
                "",
                "repeated",
                "connects in a row",
                "connect",
                "failed",
                "first request",
                "in connects",
                "the most",
                "slowest other",
                "all terminated",
            ],
            rows,
            "A process of its own for each repetition; medians of those. *Connect* is "
            "a DatabaseWrapper's without a pool, after a rest of %.0f ms, *in a row* "
            "without the rest. *First request* is the first after the termination, "
            "*in connects* the median of what it took in each repetition, divided by "
            "its *connect*, and *the most* the highest of these. *Slowest other* is "
            "the slowest of all the others. What the errors were is in the JSON file."
            % (REST * 1e3),
        )
    ]
    rows = [
        [
            get_label(name),
            format_range(figures["longest"]),
            "1" if name == REFERENCE else format_ratio(figures["longest"]["ratio"]),
            format_counts(figures["open"]),
            format_counts(figures["opened"]),
            str(figures["errors"]),
        ]
        for name, figures in result["spike"].items()
    ]
    tables.append(
        Table(
            "%d threads at once" % SPIKE_THREADS,
            [
                "",
                "longest wait, ms",
                "times POOL's",
                "open at the end",
                "opened for it",
                "errors",
            ],
            rows,
            "PostgreSQL, behind a proxy that takes %.0f ms to connect. Each thread "
            "makes one query of %.0f ms and gives its connection back. Pools have "
            "min_size=%d and max_size=%d, and are at rest before; "
            "django-db-connection-pool has no min_size, and one connection open."
            % (
                SPIKE_DELAY * 1e3,
                SPIKE_QUERY * 1e3,
                SPIKE_SIZES.min_size,
                SPIKE_SIZES.max_size,
            ),
        )
    )
    return tables


def format_counts(counts):
    if min(counts) == max(counts):
        return str(counts[0])
    return "%g (%d to %d)" % (statistics.median(counts), min(counts), max(counts))


def get_plots(result):
    return [
        Plot.of_groups(
            "spike",
            "The longest wait of %d threads that come at once" % SPIKE_THREADS,
            "milliseconds",
            [
                (
                    "connecting takes %.0f ms" % (SPIKE_DELAY * 1e3),
                    {name: f["longest"] for name, f in result["spike"].items()},
                )
            ],
            get_label,
            logarithmic=False,
        )
    ]
