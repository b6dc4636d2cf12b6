"""
Part "checkout": what it costs to acquire a warm connection and to release it.

The pools are django.db.pool.ConnectionPool, psycopg_pool.ConnectionPool and
sqlalchemy.pool.QueuePool. Their connections do nothing, so that what remains
is the pools' own work.
"""

import gc
import statistics
import sys
import threading
from time import perf_counter, sleep

from measuring import Runner, in_rounds, percentile, summarize
from tables import Plot, Table, describe_threads, format_summary
from workers import Worker

NAME = "checkout"
TITLE = "Lending and taking back alone"

# What the figures are compared to.
REFERENCE = "django.db.pool"

# Acquisitions of which the function calls are counted.
COUNTED = 100

# Seconds for which connections are held while waits are measured.
HOLD = 0.001

# name: what it means for each of the pools.
VARIANTS = {
    "default": "django.db.pool as it is, the others call a function each time",
    "polled": "django.db.pool polls a socket each time, the others as before",
    "no socket": "django.db.pool has nothing to poll, the others as before",
    "callable": "each pool calls a function that does nothing each time",
}

# (threads, connections).
SCENARIOS = [(1, 10), (8, 10), (8, 4), (64, 10), (512, 10)]

# How many connections are idle while one thread uses them.
IDLE_COUNTS = [1, 10, 100, 1000]

# How many callers wait while a connection passes from one to the next: in
# name only, and with a thread each.
LINE_LENGTHS = [100, 1000, 10000]
THREAD_COUNTS = [100, 1000]

# Files that 1,000 connections with a pair of sockets need.
FILES = 4096


# In a worker.


def prepare():
    """Return sentences on what is left out."""
    import checkout_pools

    left_out = checkout_pools.get_left_out()
    try:
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < FILES:
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(FILES, hard), hard))
    except (ImportError, ValueError, OSError) as e:
        left_out.append("The limit of open files can't be raised: %s." % e)
    # What was imported needn't be looked at by each collection.
    gc.collect()
    gc.freeze()
    return left_out


def measure(pool, threads, seconds):
    """Return the microseconds that it takes to acquire and to release."""
    # How many times a thread does it between two looks at the clock: each of
    # many threads should have its turns within the time.
    chunk = range(20 if threads <= 64 else 2)

    def work(deadline):
        run = pool.run
        operations = 0
        while perf_counter() < deadline:
            run(chunk)
            operations += len(chunk)
        return operations

    gc.collect()
    operations, elapsed = Runner(work, threads, seconds)()
    return elapsed * 1e6 / sum(operations)


def compare(threads, connections, variant, rounds, seconds):
    """Return what one scenario measures."""
    from checkout_pools import open_pools

    with open_pools(connections, variant) as pools:
        times = in_rounds(pools, rounds, lambda pool: measure(pool, threads, seconds))
    return {
        "threads": threads,
        "connections": connections,
        "variant": variant,
        "pools": summarize(times, REFERENCE),
    }


def measure_waits(pool, threads, seconds, hold):
    """Return the sorted seconds that it took to acquire a connection."""

    def work(deadline):
        acquire, release = pool.acquire, pool.release
        waits = []
        while (begun_at := perf_counter()) < deadline:
            connection = acquire()
            waits.append(perf_counter() - begun_at)
            if hold:
                sleep(hold)
            release(connection)
        return waits

    gc.collect()
    waits, _ = Runner(work, threads, seconds)()
    return sorted(wait for thread_waits in waits for wait in thread_waits)


def compare_waits(threads, connections, rounds, seconds, hold):
    from checkout_pools import open_pools

    with open_pools(connections, "callable") as pools:
        waits = in_rounds(
            pools, rounds, lambda pool: measure_waits(pool, threads, seconds, hold)
        )
    return {
        "threads": threads,
        "connections": connections,
        "hold": hold,
        "pools": {
            name: {
                "median": statistics.median(map(statistics.median, own)),
                "p99": statistics.median(percentile(waits, 99) for waits in own),
                "longest": max(waits[-1] for waits in own),
                "ratio": statistics.median(
                    waits[-1] / statistics.median(waits) for waits in own
                ),
            }
            for name, own in waits.items()
        },
    }


def measure_serving(pool, length, times):
    """Return the microseconds that serving the first in line takes."""
    run, end = pool.serve(length, range(times))
    try:
        gc.collect()
        return run() * 1e6 / times
    finally:
        end()


def compare_lines(length, rounds, times):
    from checkout_pools import open_pools

    with open_pools(1, "callable") as pools:
        # SQLAlchemy's line is one of threads, and can't be made of less.
        pools = {name: pool for name, pool in pools.items() if hasattr(pool, "serve")}
        figures = in_rounds(
            pools, rounds, lambda pool: measure_serving(pool, length, times)
        )
    return {"length": length, "pools": summarize(figures, REFERENCE)}


def measure_thread_line(pool, threads):
    """Return the microseconds per thread that serving all in line takes."""
    ready = threading.Semaphore(0)

    def work():
        ready.release()
        pool.release(pool.acquire())

    held = pool.acquire()
    line = [threading.Thread(target=work, daemon=True) for _ in range(threads)]
    for thread in line:
        thread.start()
    for _ in line:
        ready.acquire()
    # The last ones have hardly begun to wait.
    sleep(0.05)
    gc.collect()
    begun_at = perf_counter()
    pool.release(held)
    for thread in line:
        thread.join()
    return (perf_counter() - begun_at) * 1e6 / threads


def compare_thread_lines(threads, rounds):
    from checkout_pools import open_pools

    # So that many threads don't take gigabytes of address space.
    threading.stack_size(1 << 18)
    try:
        with open_pools(1, "callable") as pools:
            figures = in_rounds(
                pools, rounds, lambda pool: measure_thread_line(pool, threads)
            )
    finally:
        threading.stack_size(0)
    return {"length": threads, "pools": summarize(figures, REFERENCE)}


def count_calls(pool):
    """
    Return how many functions written in Python, and how many written in C, are
    called to acquire and to release.
    """

    def count(times):
        counts = {"call": 0, "c_call": 0}

        def profile(frame, event, argument):
            if event in counts:
                counts[event] += 1

        sys.setprofile(profile)
        try:
            pool.run(times)
        finally:
            sys.setprofile(None)
        return counts

    counts, own_counts = count(range(COUNTED)), count(range(0))
    return [
        round((counts[event] - own_counts[event]) / COUNTED, 2)
        for event in ("call", "c_call")
    ]


def compare_calls(variant):
    from checkout_pools import open_pools

    with open_pools(10, variant) as pools:
        return {
            "variant": variant,
            "pools": {
                name: dict(zip(("python", "c"), count_calls(pool)))
                for name, pool in pools.items()
            },
        }


# In the process that was started by the user.


def run(context):
    quick = context.quick
    rounds, seconds = (1, 0.02) if quick else (11, 0.25)
    result = {
        "comparisons": [],
        "idle": [],
        "lines": [],
        "thread_lines": [],
        "waits": [],
        "calls": [],
    }
    with Worker(NAME) as worker:

        def call(key, function, **kwargs):
            context.say("%s %s" % (function, " ".join(map(str, kwargs.values()))))
            result[key].append(
                worker.call("checkout.%s" % function, timeout=600, **kwargs)
            )

        result["left_out"] = worker.call("checkout.prepare")
        for threads, connections in SCENARIOS:
            for variant in VARIANTS:
                is_free = threads <= connections
                if threads == 512 and variant in ("polled", "no socket"):
                    continue
                if quick and not is_free and variant != "callable":
                    continue
                call(
                    "comparisons",
                    "compare",
                    threads=threads,
                    connections=connections,
                    variant=variant,
                    rounds=rounds,
                    # Until each of many threads had its turn, it takes long.
                    seconds=seconds * (1 if threads < 64 else threads // 64),
                )
        for connections in IDLE_COUNTS:
            call(
                "idle",
                "compare",
                threads=1,
                connections=connections,
                variant="default",
                rounds=rounds,
                seconds=seconds,
            )
        for length in LINE_LENGTHS:
            call(
                "lines",
                "compare_lines",
                length=length,
                rounds=rounds,
                times=500 if quick else 5000,
            )
        for threads in THREAD_COUNTS[:1] if quick else THREAD_COUNTS:
            call(
                "thread_lines",
                "compare_thread_lines",
                threads=threads,
                rounds=rounds,
            )
        for hold in (HOLD, 0):
            call(
                "waits",
                "compare_waits",
                threads=64,
                connections=10,
                rounds=1 if quick else 3,
                seconds=0.1 if quick else 1,
                hold=hold,
            )
        for variant in VARIANTS:
            call("calls", "compare_calls", variant=variant)
    return result


def get_tables(result):
    return [
        _get_comparison_table(result["comparisons"]),
        _get_counted_table(
            "With connections that are idle",
            "One thread; check: default.",
            "idle",
            [(entry["connections"], entry["pools"]) for entry in result["idle"]],
        ),
        _get_counted_table(
            "With callers in line",
            "One connection passes from the first in line to the next, and another "
            "caller gets in line. What is timed is giving it back, at the level of the "
            "pool: the callers have no threads, so that there can be many. "
            "SQLAlchemy's line can't be made without.",
            "in line",
            [(entry["length"], entry["pools"]) for entry in result["lines"]],
        ),
        _get_counted_table(
            "With threads in line",
            "One connection passes through a line of threads, each of which gives it "
            "back at once and ends. This is mostly the interpreter's switching "
            "between threads, and their end.",
            "threads in line",
            [(entry["length"], entry["pools"]) for entry in result["thread_lines"]],
        ),
        _get_waits_table(result["waits"]),
        _get_calls_table(result["calls"]),
    ]


def _get_comparison_table(comparisons):
    rows = [
        [
            describe_threads(entry["threads"], entry["connections"]),
            entry["variant"],
            name,
            *format_summary(summary, is_reference=name == REFERENCE),
        ]
        for entry in comparisons
        for name, summary in entry["pools"].items()
    ]
    return Table(
        "Microseconds to acquire and to release",
        ["", "check", "pool", "median (range)", "times"],
        rows,
        "The median of the rounds and their range; the median of the rounds' ratios "
        "to %s. What *check* means:\n\n%s"
        % (
            REFERENCE,
            "\n".join("- %s: %s" % item for item in VARIANTS.items()),
        ),
    )


def _get_counted_table(title, note, heading, entries):
    rows = [
        [
            "{:,}".format(count),
            name,
            *format_summary(summary, is_reference=name == REFERENCE),
        ]
        for count, pools in entries
        for name, summary in pools.items()
    ]
    return Table(
        title + ", microseconds",
        [heading, "pool", "median (range)", "times"],
        rows,
        note,
    )


def _get_waits_table(waits):
    rows = [
        [
            describe_threads(entry["threads"], entry["connections"]),
            (
                "held for %.0f ms" % (entry["hold"] * 1e3)
                if entry["hold"]
                else "released at once"
            ),
            name,
            "%.3f" % (figures["median"] * 1e3),
            "%.2f" % (figures["p99"] * 1e3),
            "%.2f" % (figures["longest"] * 1e3),
            "%.1f" % figures["ratio"],
        ]
        for entry in waits
        for name, figures in entry["pools"].items()
    ]
    return Table(
        "Waits, milliseconds",
        ["", "", "pool", "median", "p99", "longest", "longest / median"],
        rows,
        "Check: callable. A pool that serves in the order of arrival has a longest "
        "wait that isn't much longer than the median. When connections are released "
        "at once, the longest wait tells of the interpreter's switching between "
        "threads rather than of the pool.",
    )


def _get_calls_table(calls):
    rows = [
        [entry["variant"], name, "%.4g" % counts["python"], "%.4g" % counts["c"]]
        for entry in calls
        for name, counts in entry["pools"].items()
    ]
    return Table(
        "Functions called to acquire and to release",
        ["check", "pool", "in Python", "in C"],
        rows,
        "As `sys.setprofile()` sees them. They are the same on every machine.",
    )


def get_plots(result):
    free = [
        (
            "%s, %s"
            % (
                describe_threads(entry["threads"], entry["connections"]),
                entry["variant"],
            ),
            entry["pools"],
        )
        for entry in result["comparisons"]
        if entry["variant"] in ("default", "callable")
    ]
    return [
        Plot.of_groups(
            "checkout",
            "To acquire and to release a connection that does nothing",
            "microseconds, logarithmic",
            free,
        ),
        Plot.of_groups(
            "checkout-lines",
            "To serve the first of those in line",
            "microseconds, logarithmic",
            [
                ("{:,} in line".format(entry["length"]), entry["pools"])
                for entry in result["lines"]
            ],
        ),
    ]
