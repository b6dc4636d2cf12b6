"""
Part "costs": what it takes in memory, at import, and of projects without POOL.

None of this needs a server but the last: PostgreSQL, and a file of SQLite's.
"""

import gc
import os
import subprocess
import sys
import tempfile
import tracemalloc
from contextlib import ExitStack

from measuring import in_rounds, summarize
from policies import POLICIES, VENDORS, Sizes, get_label
from requests_ import DATABASE, WITH_QUERY, get_base_settings, make_measure
from tables import Plot, Table, format_number, format_range, format_ratio
from workers import ROOT, Worker, start_workers

NAME = "costs"
TITLE = "Memory, imports, and projects without POOL"

ENTRIES = 1000

# Ways of starting up: what it says in the page, and the program.
STARTS = {
    "without": (
        "without the app",
        "import django\n"
        "from django.conf import settings\n"
        "settings.configure(DATABASES=%(databases)r, INSTALLED_APPS=[])\n"
        "django.setup()\n"
        "from django.db import connection\n"
        "connection.vendor\n",
    ),
    "with": (
        "with the app in INSTALLED_APPS, without POOL",
        "import django\n"
        "from django.conf import settings\n"
        "settings.configure(\n"
        "    DATABASES=%(databases)r, INSTALLED_APPS=['django_pool_patch']\n"
        ")\n"
        "django.setup()\n"
        "from django.db import connection\n"
        "connection.vendor\n",
    ),
}

# Prints the milliseconds and how many modules there are.
TIMED = """
import sys, time
sys.path.insert(0, %(root)r)
begun_at = time.perf_counter()
%(program)s
milliseconds = (time.perf_counter() - begun_at) * 1e3
print(milliseconds, len(sys.modules))
"""

# Those without POOL: (policy, whether the overlay is installed).
UNUSED = {
    "none": "no pool",
    "none, overlay": "no pool, the overlay installed",
    "persistent": "CONN_MAX_AGE=None",
    "persistent, overlay": "CONN_MAX_AGE=None, the overlay installed",
}


# In a worker.


def measure_memory():
    """
    Return {pool: bytes} that an idle connection takes beyond the driver's.

    The connections are made before, and don't count.
    """
    import checkout_pools

    results = {}
    for pool_class in checkout_pools.POOLS:
        connections = [checkout_pools.Connection() for _ in range(ENTRIES)]
        for connection in connections:
            # psycopg_pool sets attributes on the connection. Without this it
            # would be charged for the dict that psycopg's connection has.
            connection.__dict__
        results[pool_class.name] = measure_one(pool_class, connections)
    return results


def measure_one(pool_class, connections):
    from unittest import mock

    import checkout_pools

    def fill(count):
        """Return the pool, and what it took."""
        supply = iter(connections)

        class Supplied(checkout_pools.Connection):
            def __new__(cls):
                return next(supply)

            def __init__(self):
                pass

            @classmethod
            def connect(cls, conninfo="", **kwargs):
                return cls()

        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        with mock.patch.object(checkout_pools, "Connection", Supplied):
            pool = pool_class(count, "callable")
            entries = [pool.acquire() for _ in range(count)]
            while entries:
                pool.release(entries.pop())
            del entries
        gc.collect()
        return pool, tracemalloc.get_traced_memory()[0] - before

    # What only the first does.
    fill(2)[0].close()
    tracemalloc.start()
    try:
        few, of_few = fill(10)
        few.close()
        del few
        many, of_many = fill(ENTRIES)
        many.close()
    finally:
        tracemalloc.stop()
    return (of_many - of_few) / (ENTRIES - 10)


def measure_wrapped_memory(path):
    """
    Return the bytes that an idle connection of a DatabaseWrapper's pool takes
    beyond the driver's, with its own wrapper, on SQLite.
    """
    import requests_

    from django.db import connection

    requests_.set_up(
        {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": path,
            "POOL": {"min_size": 10, "max_size": 2 * ENTRIES},
        },
        True,
    )
    requests_.query()
    pool = connection.connection_pool
    connection.close()
    parameters = connection.get_connection_params()
    pool.wait()

    def take(make):
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        made = make()
        gc.collect()
        return made, (tracemalloc.get_traced_memory()[0] - before) / ENTRIES

    def open_entries():
        pool.resize(10 + ENTRIES, 2 * ENTRIES)
        pool.wait(120)

    tracemalloc.start()
    try:
        # As DatabaseWrapper opens them, functions and all.
        bare, of_bare = take(
            lambda: [connection.get_new_connection(parameters) for _ in range(ENTRIES)]
        )
        _, of_entry = take(open_entries)
    finally:
        tracemalloc.stop()
    for each in bare:
        each.close()
    return of_entry - of_bare


# In the process that was started by the user.


def time_start(name, databases):
    """Return the milliseconds that a way of starting up takes, and modules."""
    program = TIMED % {
        "root": str(ROOT),
        "program": STARTS[name][1] % {"databases": databases},
    }
    output = subprocess.run(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    milliseconds, modules = output.split()
    return float(milliseconds), int(modules)


def measure_starts(context):
    context.say("starting up")
    databases = {
        "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "unused.sqlite3"}
    }
    figures = in_rounds(
        {name: name for name in STARTS},
        1 if context.quick else 21,
        lambda name: time_start(name, databases),
    )
    summaries = summarize(
        {name: [each[0] for each in own] for name, own in figures.items()}, "without"
    )
    for name, own in figures.items():
        summaries[name]["modules"] = own[0][1]
        summaries[name]["beyond"] = summarize(
            {name: [mine[0] - bare[0] for mine, bare in zip(own, figures["without"])]},
            None,
        )[name]
    return summaries


def measure_unused(context, vendor, base):
    """Return {operation: summaries} of projects that don't use POOL."""
    rounds, seconds = (1, 0.02) if context.quick else (21, 0.3)
    setups = {}
    for name in UNUSED:
        policy = POLICIES[name.partition(",")[0]]
        setups[name] = {
            "function": "requests_.set_up_and_try",
            "database": policy.get_settings(base, vendor, Sizes()),
            "has_overlay": name.endswith("overlay"),
        }
    result = {}
    with start_workers(setups) as (workers, problems):
        if problems:
            raise RuntimeError(" ".join(problems.values()))
        for operation in WITH_QUERY:
            context.say("without POOL: %s, %s" % (VENDORS[vendor], operation))
            figures = in_rounds(
                workers, rounds, make_measure(operation, seconds, vendor, base)
            )
            summaries = {}
            for name in POLICIES.keys() & UNUSED.keys():
                pair = [name, "%s, overlay" % name]
                summaries |= summarize({key: figures[key] for key in pair}, name)
            # In the order of UNUSED.
            result[operation] = {name: summaries[name] for name in UNUSED}
    return result


def run(context):
    result = {"left_out": [], "unused": {}}
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        path = os.path.join(directory, "db.sqlite3")
        context.say("memory")
        with Worker("memory") as worker:
            result["left_out"] += worker.call("checkout.prepare")
            result["memory"] = worker.call("costs.measure_memory")
        with Worker("memory") as worker:
            worker.call("checkout.prepare")
            result["wrapped_memory"] = worker.call(
                "costs.measure_wrapped_memory", path=path
            )
        result["starts"] = measure_starts(context)
        bases = {
            "sqlite": {"ENGINE": "django.db.backends.sqlite3", "NAME": path},
        }
        server = context.start_server(stack, "postgresql", result["left_out"])
        if server is not None:
            server.create_database(DATABASE)
            bases["postgresql"] = get_base_settings(server)
        for vendor, base in bases.items():
            result["unused"][vendor] = measure_unused(context, vendor, base)
    return result


def get_tables(result):
    rows = [
        [name, "do nothing", format_number(size)]
        for name, size in result["memory"].items()
    ]
    rows.append(
        [
            "POOL, with the pool's DatabaseWrapper",
            "SQLite's, as DatabaseWrapper opens them",
            format_number(result["wrapped_memory"]),
        ]
    )
    tables = [
        Table(
            "Memory of an idle connection beyond the driver's, bytes",
            ["", "connections", "bytes"],
            rows,
            "What `tracemalloc` sees of %d entries that have been used once, divided "
            "by their number. The driver's connections aren't counted. On connections "
            "that do nothing there is the pool's own entry only; Django's pool also "
            "has a DatabaseWrapper for each, which it checks and cleans the connection "
            "with." % ENTRIES,
        ),
        Table(
            "Starting up, milliseconds",
            ["", "median (range)", "times", "more than without", "modules"],
            [
                [
                    STARTS[name][0],
                    format_range(summary),
                    "1" if name == "without" else format_ratio(summary["ratio"]),
                    "–" if name == "without" else format_range(summary["beyond"]),
                    str(summary["modules"]),
                ]
                for name, summary in result["starts"].items()
            ],
            "`import django`, `django.setup()` and the load of SQLite's backend, in a "
            "new process each time, without the start of Python.",
        ),
    ]
    for vendor, operations in result["unused"].items():
        tables.append(
            Table(
                "Without POOL, %s, microseconds" % VENDORS[vendor],
                ["", "", "median (range)", "times"],
                [
                    [
                        operation,
                        UNUSED[name],
                        format_range(summary),
                        format_ratio(summary["ratio"]) if "," in name else "1",
                    ]
                    for operation, summaries in operations.items()
                    for name, summary in summaries.items()
                ],
                "The request and the statement of the part on requests. The overlay "
                "replaces a decorator of Django's by one that raises nothing to find "
                "out whether there is an event loop, so that some things get faster.",
            )
        )
    return tables


def get_plots(result):
    return [
        Plot.of_groups(
            "unused",
            "Projects without POOL",
            "microseconds, logarithmic",
            [
                ("%s, %s" % (VENDORS[vendor], operation), summaries)
                for vendor, operations in result["unused"].items()
                for operation, summaries in operations.items()
            ],
            lambda name: UNUSED.get(name) or get_label(name),
        )
    ]
