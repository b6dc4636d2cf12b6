#!/usr/bin/env python
"""
Measure how requests fare after the server has closed all of a pool's
connections.

    python benchmarks/recovery.py [--quick] [--peers] [--json FILE]

Private servers are started for this, PostgreSQL and MariaDB where installed.
See README.md for what is measured and how to read it.

Nothing is judged here: the exit status is 0 unless the benchmark can't run.
"""

import argparse
import json
import logging
import statistics
import subprocess
import sys
import threading
from pathlib import Path
from time import perf_counter, sleep

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import servers  # NOQA: E402

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
# Seconds after which a configuration is given up.
TIMEOUT = 1800

CLIENTS = {
    "postgresql": servers.PostgreSQLClient,
    "mysql": servers.MariaDBClient,
}
SERVERS = {
    "PostgreSQL": servers.PostgreSQLServer,
    "MariaDB": servers.MariaDBServer,
}


def get_pool_settings(size):
    return {"POOL": {"min_size": size, "max_size": size}}


def get_peer_settings(size):
    return {
        "OPTIONS": {"pool": {"min_size": size, "max_size": size}},
        "CONN_HEALTH_CHECKS": True,
    }


# In a process of its own for each configuration, for Django's settings are
# global.


def work(vendor, credentials, settings, size, repetitions):
    """Print what one configuration measures as JSON."""
    import django
    import django_pool_patch  # NOQA: F401
    from django.conf import settings as django_settings
    from django.db import connections

    logging.getLogger("psycopg.pool").addHandler(logging.NullHandler())
    client = CLIENTS[vendor](**credentials)
    unpooled = client.settings(DATABASE)
    django_settings.configure(
        DATABASES={"default": {**unpooled, **settings}, "unpooled": unpooled},
        INSTALLED_APPS=["django_pool_patch"],
        USE_TZ=False,
    )
    django.setup()
    results = [
        measure(client, connections, size, first=number == 0)
        for number in range(repetitions)
    ]
    # Pools end with the process, but some need to be told.
    if hasattr(connections["default"], "close_pool"):
        connections["default"].close_pool()
    print(json.dumps(results))


def measure(client, connections, size, first):
    """Return the figures of one repetition, in milliseconds."""
    if first:
        # Whatever happens only once in a process.
        connect(connections)
    warm_up(connections, size)
    # The pool has to be at rest, lest its connecting slow down the others'.
    client.wait_for_connection_count(size, DATABASE)
    in_a_row = statistics.median(connect(connections) for _ in range(CONNECTS))
    connecting = statistics.median(
        connect(connections, rest=REST) for _ in range(CONNECTS)
    )
    # Servers notice only a little later that a connection was closed.
    opened = client.wait_for_connection_count(size, DATABASE)
    terminated = client.terminate_connections(DATABASE)
    times, errors = [], []
    for _ in range(REQUESTS):
        begun_at = perf_counter()
        error = request(connections)
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


def connect(connections, rest=0):
    """Return the milliseconds that it takes to connect without a pool."""
    connection = connections["unpooled"]
    sleep(rest)
    begun_at = perf_counter()
    connection.connect()
    milliseconds = (perf_counter() - begun_at) * 1e3
    connection.close()
    return milliseconds


def query(connection):
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        cursor.fetchone()


def warm_up(connections, size):
    """Have all connections of the pool in use at the same time, once."""
    barrier = threading.Barrier(size)
    errors = []

    def use():
        try:
            connection = connections["default"]
            try:
                query(connection)
                barrier.wait()
            finally:
                connection.close()
        except Exception as e:
            errors.append(e)
            barrier.abort()

    threads = [threading.Thread(target=use) for _ in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def request(connections):
    """Do as a request does. Return the exception that it failed with."""
    from django.db import close_old_connections

    close_old_connections()
    try:
        query(connections["default"])
    except Exception as e:
        return e
    finally:
        close_old_connections()
    return None


# In the process that was started by the user.


def run(server, settings, size, repetitions):
    """Run one configuration in a process. Return its repetitions' figures."""
    arguments = {
        "vendor": server.vendor,
        "credentials": server.credentials(),
        "settings": settings,
        "size": size,
        "repetitions": repetitions,
    }
    # By way of its standard input, for the command line is no place for a
    # password.
    result = subprocess.run(
        [sys.executable, __file__, "--work"],
        input=json.dumps(arguments),
        stdout=subprocess.PIPE,
        text=True,
        timeout=TIMEOUT,
    )
    if result.returncode:
        raise RuntimeError("The process ended with status %d." % result.returncode)
    return json.loads(result.stdout.splitlines()[-1])


def print_result(label, size, results):
    ratios = [result["ratio"] for result in results]

    def median(name):
        return statistics.median(result[name] for result in results)

    print(
        "  %-15s %4d %8.2f %8.2f %7d %8.2f %8.2f %8.2f %11.2f"
        % (
            label,
            size,
            median("in_a_row"),
            median("connect"),
            sum(result["failed"] for result in results),
            median("first"),
            statistics.median(ratios),
            max(ratios),
            max(result["slowest_other"] for result in results),
        ),
        flush=True,
    )
    for result in results:
        if result["terminated"] != size:
            print("    %d connections were terminated." % result["terminated"])
        if result["error"]:
            print("    %s" % result["error"].strip().partition("\n")[0])


def main():
    if sys.argv[1:] == ["--work"]:
        work(**json.load(sys.stdin))
        return
    parser = argparse.ArgumentParser(
        description="Measure how requests fare after the server has closed all of "
        "a pool's connections."
    )
    parser.add_argument("--quick", action="store_true", help="repeat less often")
    parser.add_argument(
        "--peers",
        action="store_true",
        help='measure OPTIONS["pool"] with CONN_HEALTH_CHECKS as well, which takes '
        "minutes",
    )
    parser.add_argument("--json", metavar="FILE", help="write all figures to FILE")
    options = parser.parse_args()
    repetitions = 2 if options.quick else 5

    print(
        "All connections of a pool are terminated at the server, then %d requests "
        "follow\none by one. Milliseconds; %d repetitions with POOL, medians "
        "unless it says max." % (REQUESTS, repetitions)
    )
    report = []
    for name, server_class in SERVERS.items():
        server = server_class()
        try:
            server.start()
        except servers.ServerNotInstalled as e:
            print("\n%s: %s" % (name, e), flush=True)
            continue
        with server:
            configurations = [("POOL", get_pool_settings, repetitions)]
            if options.peers and name == "PostgreSQL":
                configurations.append(('OPTIONS["pool"]', get_peer_settings, 1))
            print(
                "\n%s\n  %-15s %4s %8s %8s %7s %8s %8s %8s %11s"
                % (
                    name,
                    "",
                    "size",
                    "in a row",
                    "connect",
                    "failed",
                    "first",
                    "ratio",
                    "max",
                    "others, max",
                )
            )
            server.create_database(DATABASE)
            for label, get_settings, times in configurations:
                for size in SIZES:
                    try:
                        results = run(server, get_settings(size), size, times)
                    except (RuntimeError, subprocess.TimeoutExpired) as e:
                        print("  %-15s %4d %s" % (label, size, e), flush=True)
                        continue
                    print_result(label, size, results)
                    report.append(
                        {
                            "server": name,
                            "configuration": label,
                            "size": size,
                            "repetitions": results,
                        }
                    )
    if not report:
        sys.exit("Nothing could be measured.")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(report, file, indent=2)
            file.write("\n")


if __name__ == "__main__":
    main()
