#!/usr/bin/env python
"""
Compare what it costs to acquire a warm connection and to release it.

    python benchmarks/checkout.py [--quick] [--json FILE]

The pools are django.db.pool.ConnectionPool, psycopg_pool.ConnectionPool and
sqlalchemy.pool.QueuePool. Their connections do nothing, so that what remains
is the pools' own work. See README.md for what is measured and how to read it.

Nothing is judged here: the exit status is 0 unless the benchmark can't run.
"""

import argparse
import gc
import json
import os
import platform
import socket
import statistics
import sys
import threading
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from time import perf_counter, sleep
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

try:
    import psycopg_pool
    import sqlalchemy.pool
    from psycopg.pq import TransactionStatus
    from sqlalchemy.engine.default import DefaultDialect

    import django_pool_patch  # NOQA: F401
    from django.db.pool import BaseConnector, ConnectionPool
except ImportError as e:
    sys.exit("%s. 'make bench' sets everything up by itself." % e)

# How many times a thread acquires and releases between two looks at the clock.
CHUNK = range(20)

# Acquisitions of which the function calls are counted.
COUNTED = 100

# Seconds for which connections are held while waits are measured.
HOLD = 0.001

IDLE = TransactionStatus.IDLE

# name: what it means for each of the pools.
VARIANTS = {
    "default": "django.db.pool as it is, the others call a function each time",
    "polled": "django.db.pool polls a socket each time, the others as before",
    "no socket": "django.db.pool has nothing to poll, the others as before",
    "callable": "each pool calls a function that does nothing each time",
}

# The variants in which connections have a socket.
WITH_SOCKET = {"default", "polled"}

# (threads, connections), the most important first.
SCENARIOS = [(1, 10), (8, 10), (8, 4), (64, 10)]


# Connections that do nothing.


class PGconn:
    """What psycopg_pool asks of a connection to see whether it's clean."""

    transaction_status = IDLE


class Connection:
    """A connection of psycopg's and of a DB-API driver's, without a server."""

    _pool = None

    def __init__(self):
        self.pgconn = PGconn()

    @classmethod
    def connect(cls, conninfo="", **kwargs):
        return cls()

    def rollback(self):
        pass

    def close(self):
        pass


class SocketConnection(Connection):
    """A connection whose socket can be polled, and is silent."""

    def __init__(self):
        super().__init__()
        self.socket, self.server = socket.socketpair()

    def close(self):
        self.socket.close()
        self.server.close()


# The pools. Each is measured by its natural way to acquire and to release,
# written out, lest a call of the benchmark's own be measured too.


class DjangoPool:
    name = "django.db.pool"

    class Connector(BaseConnector):
        def open(self):
            return Connection()

        def check(self, entry):
            return True

        def is_clean(self, entry):
            # What psycopg_pool looks at, too.
            return entry.connection.pgconn.transaction_status == IDLE

    class SocketConnector(Connector):
        def open(self):
            return SocketConnection()

        def fileno(self, connection):
            return connection.socket.fileno()

    def __init__(self, connections, variant):
        connector = self.SocketConnector if variant in WITH_SOCKET else self.Connector
        self.pool = ConnectionPool(
            connector(),
            min_size=connections,
            max_size=connections,
            check="ping" if variant == "callable" else "auto",
        )
        self.pool.open(wait=True)
        self.acquire = self.pool.acquire
        self.release = self.pool.release

    def run(self, times):
        acquire, release = self.acquire, self.release
        for _ in times:
            release(acquire())

    def close(self):
        self.pool.close()


class PsycopgPool:
    name = "psycopg_pool"

    @staticmethod
    def check(connection):
        pass

    def __init__(self, connections, variant):
        self.pool = psycopg_pool.ConnectionPool(
            connection_class=Connection,
            min_size=connections,
            max_size=connections,
            check=self.check,
            open=False,
        )
        self.pool.open(wait=True)
        self.acquire = self.pool.getconn
        self.release = self.pool.putconn

    def run(self, times):
        getconn, putconn = self.acquire, self.release
        for _ in times:
            putconn(getconn())

    def close(self):
        self.pool.close()


class SQLAlchemyPool:
    name = "SQLAlchemy"

    class Dialect(DefaultDialect):
        def do_ping(self, dbapi_connection):
            return True

    def __init__(self, connections, variant):
        self.pool = sqlalchemy.pool.QueuePool(
            Connection.connect,
            pool_size=connections,
            max_overflow=0,
            recycle=3600,
            pre_ping=True,
            dialect=self.Dialect(),
        )
        self.acquire = self.pool.connect

    @staticmethod
    def release(connection):
        connection.close()

    def run(self, times):
        connect = self.acquire
        for _ in times:
            connect().close()

    def close(self):
        self.pool.dispose()


POOLS = [DjangoPool, PsycopgPool, SQLAlchemyPool]


@contextmanager
def open_pools(connections, variant):
    """Open a pool of each kind, with all of its connections warm."""
    with ExitStack() as stack:
        if variant == "polled":
            stack.enter_context(
                mock.patch("django.db.pool.threads.TRUST_IN_RETURNED", 0)
            )
        pools = []
        for pool_class in POOLS:
            pool = pool_class(connections, variant)
            stack.callback(pool.close)
            # What a pool doesn't do with a connection that is new, it does
            # from the second time on.
            for _ in range(2):
                for connection in [pool.acquire() for _ in range(connections)]:
                    pool.release(connection)
            pools.append(pool)
        yield pools


# Measuring.


class Runner:
    """
    Run a function in threads that start together, for some seconds.

    The function gets the time on perf_counter() at which it has to end.
    """

    def __init__(self, function, threads, seconds):
        self.function = function
        self.seconds = seconds
        self.barrier = threading.Barrier(threads, action=self.start)
        self.results = []
        self.error = None
        self.threads = [
            threading.Thread(target=self.run, daemon=True) for _ in range(threads)
        ]

    def start(self):
        self.started_at = perf_counter()
        self.deadline = self.started_at + self.seconds

    def run(self):
        try:
            self.barrier.wait()
            self.results.append(self.function(self.deadline))
        except BaseException as e:
            self.error = e
            self.barrier.abort()

    def __call__(self):
        """Return what the function returned, and the seconds that it took."""
        for thread in self.threads:
            thread.start()
        for thread in self.threads:
            thread.join()
        seconds = perf_counter() - self.started_at
        if self.error is not None:
            raise self.error
        return self.results, seconds


def measure(pool, threads, seconds):
    """Return the microseconds that it takes to acquire and to release."""

    def work(deadline):
        run = pool.run
        operations = 0
        while perf_counter() < deadline:
            run(CHUNK)
            operations += len(CHUNK)
        return operations

    operations, elapsed = Runner(work, threads, seconds)()
    return elapsed * 1e6 / sum(operations)


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

    waits, _ = Runner(work, threads, seconds)()
    return sorted(wait for thread_waits in waits for wait in thread_waits)


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


def in_rounds(pools, rounds, function):
    """
    Return the results of function(pool) in a list for each pool.

    The pools take turns, and each round begins with another one, so that what
    else happens on the machine meets all of them alike.
    """
    results = [[] for _ in pools]
    # One more round, to warm up.
    for number in range(rounds + 1):
        for turn in range(len(pools)):
            index = (number + turn) % len(pools)
            gc.collect()
            result = function(pools[index])
            if number:
                results[index].append(result)
    return results


def compare(threads, connections, variant, rounds, seconds):
    """Return what compare_pools() measured, as a dict."""
    with open_pools(connections, variant) as pools:
        times = in_rounds(pools, rounds, lambda pool: measure(pool, threads, seconds))
    return {
        "threads": threads,
        "connections": connections,
        "variant": variant,
        "pools": {
            pool.name: {
                "microseconds": statistics.median(own_times),
                "lowest": min(own_times),
                "highest": max(own_times),
                # Of each round, and then the median, for what slows one pool
                # down most likely slows down its neighbours in the round.
                "ratio": statistics.median(
                    own / ours for own, ours in zip(own_times, times[0])
                ),
                "rounds": own_times,
            }
            for pool, own_times in zip(POOLS, times)
        },
    }


def compare_waits(threads, connections, rounds, seconds, hold):
    with open_pools(connections, "callable") as pools:
        waits = in_rounds(
            pools, rounds, lambda pool: measure_waits(pool, threads, seconds, hold)
        )
    return {
        "threads": threads,
        "connections": connections,
        "hold": hold,
        "pools": {
            pool.name: {
                "median": statistics.median(map(statistics.median, own_waits)),
                "longest": max(own[-1] for own in own_waits),
                "ratio": statistics.median(
                    own[-1] / statistics.median(own) for own in own_waits
                ),
            }
            for pool, own_waits in zip(POOLS, waits)
        },
    }


def compare_calls(variant):
    with open_pools(10, variant) as pools:
        counts = [count_calls(pool) for pool in pools]
    return {
        "variant": variant,
        "pools": {
            pool.name: {"python": python, "c": c}
            for pool, (python, c) in zip(POOLS, counts)
        },
    }


# Reporting.


def get_versions():
    system = platform.freedesktop_os_release if sys.platform == "linux" else dict
    try:
        distribution = " (%s)" % system()["PRETTY_NAME"]
    except (OSError, KeyError):
        distribution = ""
    return {
        "Python": "%s %s"
        % (platform.python_implementation(), platform.python_version()),
        "OS": "%s %s%s" % (platform.system(), platform.machine(), distribution),
        "CPUs": os.cpu_count(),
        "GIL": getattr(sys, "_is_gil_enabled", lambda: True)(),
        "Django": version("Django"),
        "psycopg_pool": version("psycopg_pool"),
        "SQLAlchemy": version("SQLAlchemy"),
    }


def describe(threads, connections):
    return "%s on %d connections" % (
        "1 thread" if threads == 1 else "%d threads" % threads,
        connections,
    )


def print_comparison(comparison):
    print(
        "\n%s, check: %s"
        % (
            describe(comparison["threads"], comparison["connections"]),
            comparison["variant"],
        )
    )
    for name, result in comparison["pools"].items():
        print(
            "  %-15s %9.2f  (%.2f to %.2f)%s"
            % (
                name,
                result["microseconds"],
                result["lowest"],
                result["highest"],
                "" if name == DjangoPool.name else "  %.1f times" % result["ratio"],
            ),
            flush=True,
        )


def print_waits(comparison):
    print(
        "\nWaits of %s, %s"
        % (
            describe(comparison["threads"], comparison["connections"]),
            (
                "each held for %.0f ms" % (comparison["hold"] * 1000)
                if comparison["hold"]
                else "released at once"
            ),
        )
    )
    for name, result in comparison["pools"].items():
        print(
            "  %-15s median %9.4f ms, longest %9.2f ms, longest / median %.1f"
            % (name, result["median"] * 1e3, result["longest"] * 1e3, result["ratio"]),
            flush=True,
        )


def print_calls(comparison):
    print("\nFunctions called, check: %s" % comparison["variant"])
    for name, result in comparison["pools"].items():
        print(
            "  %-15s %5.4g in Python, %.4g in C"
            % (name, result["python"], result["c"]),
            flush=True,
        )


def main():
    parser = argparse.ArgumentParser(
        description="Compare what it costs to acquire a warm connection and to "
        "release it."
    )
    parser.add_argument(
        "--quick", action="store_true", help="take less than 20 seconds"
    )
    parser.add_argument("--json", metavar="FILE", help="write all figures to FILE")
    options = parser.parse_args()
    rounds, seconds, wait_rounds = (5, 0.05, 2) if options.quick else (11, 0.25, 3)
    # What was imported needn't be looked at by each collection.
    gc.collect()
    gc.freeze()

    versions = get_versions()
    print(", ".join("%s: %s" % item for item in versions.items()))
    for name, meaning in VARIANTS.items():
        print("check %-10s %s" % (name + ":", meaning))
    print(
        "\nMicroseconds to acquire and release, median (range) of %d rounds; median "
        "of the\nrounds' ratios to %s" % (rounds, DjangoPool.name)
    )
    comparisons = []
    for threads, connections in SCENARIOS:
        for variant in VARIANTS:
            is_main = threads <= connections
            if options.quick and not is_main and variant != "callable":
                continue
            comparison = compare(
                threads,
                connections,
                variant,
                rounds,
                # Until each of many threads had its turn, it takes a while.
                seconds if threads < 64 else 2 * seconds,
            )
            comparisons.append(comparison)
            print_comparison(comparison)
    waits = []
    for hold in (HOLD, 0):
        comparison = compare_waits(64, 10, wait_rounds, 4 * seconds, hold)
        waits.append(comparison)
        print_waits(comparison)
    calls = []
    for variant in VARIANTS:
        comparison = compare_calls(variant)
        calls.append(comparison)
        print_calls(comparison)
    if options.json:
        report = {
            "versions": versions,
            "comparisons": comparisons,
            "waits": waits,
            "calls": calls,
        }
        with open(options.json, "w") as file:
            json.dump(report, file, indent=2)
            file.write("\n")


if __name__ == "__main__":
    main()
