"""
Part "requests": what a request costs, and its pieces, on a real database.

Each policy has a process of its own, with one thread.

How long a statement takes depends more on the core that the server runs on
than on what holds the connection. So there's the processor's time as well,
which the thread takes while it and the server are on one core.
"""

import os
import tempfile
from contextlib import ExitStack, closing
from time import thread_time

from affinity import can_pin, on_one_core
from measuring import in_rounds, summarize, time_operation
from policies import BARE, POLICIES, REFERENCE, VENDORS, Sizes, get_label, select
from tables import Plot, Table, format_range, format_ratio, format_summary
from workers import start_workers

NAME = "requests"
TITLE = "One request, and its pieces"

DATABASE = "requests"

# name: what is timed.
OPERATIONS = {
    "request": "a request: `SELECT 1`, then `close_old_connections()`",
    "lending": "lending and taking back: `connection.ensure_connection()`, then "
    "`connection.close_if_unusable_or_obsolete()`",
    "statement": "a statement: `SELECT 1` through a cursor, and nothing else",
}

# Those of which the bare query is a part.
WITH_QUERY = ["request", "statement"]


# Those whose statements are measured by the processor's time as well.
PROCESSOR_POLICIES = ["persistent", "options", "session", "transaction"]

# Processes that each of these is measured in, one after the other: they differ
# among each other by as much as is to be seen.
PROCESSES = 5


# In a worker.


def set_up(database, has_overlay):
    """Set up Django, with or without the overlay."""
    import logging
    import sys

    import django
    from django.conf import settings

    logging.getLogger("psycopg.pool").addHandler(logging.NullHandler())
    settings.configure(
        DATABASES={"default": database},
        INSTALLED_APPS=["django_pool_patch"] if has_overlay else [],
        USE_TZ=False,
    )
    django.setup()
    if ("django_pool_patch" in sys.modules) != has_overlay:
        raise AssertionError("The overlay is where it shouldn't be, or isn't.")


def set_up_and_try(database, has_overlay):
    """Do what set_up() does, and fail unless a query succeeds."""
    from django.db import close_old_connections

    set_up(database, has_overlay)
    query()
    close_old_connections()


def measure_processor(core, seconds):
    """Return the microseconds that a statement occupies a core for."""
    from django.db import close_old_connections

    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        return time_operation(query, seconds, thread_time)
    finally:
        os.sched_setaffinity(0, cores)
        close_old_connections()


def query():
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        cursor.fetchone()


def measure(operation, seconds):
    """Return the microseconds that an operation of OPERATIONS takes."""
    from django.db import close_old_connections, connection

    def request():
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            cursor.fetchone()
        close_old_connections()

    def lending():
        connection.ensure_connection()
        connection.close_if_unusable_or_obsolete()

    function = {"request": request, "lending": lending, "statement": query}
    microseconds = time_operation(function[operation], seconds)
    # The next operation begins like a request.
    close_old_connections()
    return microseconds


def measure_bare(vendor, parameters, operation, seconds):
    """Return the microseconds that the same query takes the driver alone."""
    with closing(connect_bare(vendor, parameters)) as connection:

        def bare_query():
            with closing(connection.cursor()) as cursor:
                cursor.execute("SELECT 1")
                cursor.fetchone()

        return time_operation(bare_query, seconds)


def connect_bare(vendor, parameters):
    if vendor == "sqlite":
        import sqlite3

        return sqlite3.connect(parameters["NAME"], isolation_level=None)
    keywords = {
        "host": parameters["HOST"],
        "port": int(parameters["PORT"]),
        "user": parameters["USER"],
        "password": parameters["PASSWORD"],
    }
    if vendor == "mysql":
        import MySQLdb

        return MySQLdb.connect(database=DATABASE, autocommit=True, **keywords)
    import psycopg

    return psycopg.connect(
        dbname=DATABASE, autocommit=True, prepare_threshold=None, **keywords
    )


def load():
    """Do what a worker without Django does at first."""


# In the process that was started by the user.


def get_base_settings(client):
    return client.settings(DATABASE)


def make_measure(operation, seconds, vendor, base):
    """Return what measures an operation in a worker, for in_rounds()."""

    def measure_in(worker):
        if worker.name == BARE:
            return worker.call(
                "requests_.measure_bare",
                vendor=vendor,
                parameters=base,
                operation=operation,
                seconds=seconds,
            )
        return worker.call("requests_.measure", operation=operation, seconds=seconds)

    return measure_in


def measure_vendor(
    context, vendor, base, server, pgbouncer, rounds, seconds, processes
):
    """
    Return {operation: {policy: summary}}, one more {policy: summary} by the
    processor's time for a statement, and what is left out.
    """
    selected, left_out = select(POLICIES, vendor)
    setups = {BARE: {"function": "requests_.load"}}
    for name, policy in selected.items():
        database = base
        if policy.by_pgbouncer:
            if pgbouncer is None:
                continue
            database = {**base, **get_base_settings(pgbouncer)}
        setups[name] = {
            "function": "requests_.set_up_and_try",
            "database": policy.get_settings(database, vendor, Sizes()),
            "has_overlay": policy.has_overlay,
        }
    result = {}
    with start_workers(setups) as (workers, problems):
        for name, problem in problems.items():
            left_out.append("%s is left out: %s" % (get_label(name), problem))
        for operation in OPERATIONS:
            context.say("%s, %s" % (VENDORS[vendor], operation))
            subjects = dict(workers)
            if operation not in WITH_QUERY:
                del subjects[BARE]
            figures = in_rounds(
                subjects, rounds, make_measure(operation, seconds, vendor, base)
            )
            summaries = summarize(figures, REFERENCE)
            if operation in WITH_QUERY:
                add_difference(summaries, figures)
            result[operation] = summaries
        available = [name for name in PROCESSOR_POLICIES if name in workers]
    context.say("%s, processor time" % VENDORS[vendor])
    processor = measure_processor_times(
        {name: setups[name] for name in available},
        None if server is None else server.process.pid,
        processes,
        rounds,
        seconds / 4,
    )
    return result, processor, left_out


def measure_processor_times(setups, pid, processes, rounds, seconds):
    """Return {policy: summary}, with how much more that is than POOL's."""
    if not can_pin():
        return {}

    def measure_in(worker):
        return worker.call("requests_.measure_processor", core=core, seconds=seconds)

    figures = {name: [] for name in setups}
    for _ in range(processes):
        with start_workers(setups) as (workers, _), on_one_core(pid) as core:
            for name, own in in_rounds(workers, rounds, measure_in).items():
                figures[name] += own
    summaries = summarize(figures, REFERENCE)
    for name, own in figures.items():
        more = [mine - other for mine, other in zip(own, figures[REFERENCE])]
        summaries[name]["more"] = summarize({name: more}, None)[name]
    return summaries


def add_difference(summaries, figures):
    """Add what each takes beyond the bare query, within the same rounds."""
    for name, own in figures.items():
        if name != BARE:
            beyond = [mine - bare for mine, bare in zip(own, figures[BARE])]
            summaries[name]["beyond"] = summarize({name: beyond}, None)[name]


def run(context):
    rounds, seconds = (1, 0.02) if context.quick else (11, 0.3)
    processes = 1 if context.quick else PROCESSES
    result = {"vendors": {}, "processor": {}, "left_out": [], "processes": processes}
    with ExitStack() as stack:
        for vendor in VENDORS:
            server = pgbouncer = None
            if vendor == "sqlite":
                directory = stack.enter_context(tempfile.TemporaryDirectory())
                base = {
                    "ENGINE": "django.db.backends.sqlite3",
                    "NAME": os.path.join(directory, "db.sqlite3"),
                }
            else:
                server = context.start_server(stack, vendor, result["left_out"])
                if server is None:
                    continue
                server.create_database(DATABASE)
                base = get_base_settings(server)
                if vendor == "postgresql":
                    pgbouncer = context.start_pgbouncer(
                        stack, server, result["left_out"]
                    )
            figures, processor, left_out = measure_vendor(
                context, vendor, base, server, pgbouncer, rounds, seconds, processes
            )
            result["vendors"][vendor] = figures
            result["processor"][vendor] = processor
            result["left_out"] += left_out
    if not can_pin():
        result["left_out"].append(
            "Processor times are left out: processes can't be kept on one core here."
        )
    return result


def get_tables(result):
    tables = [
        get_table(
            "%s, %s, microseconds" % (VENDORS[vendor], operation),
            OPERATIONS[operation],
            summaries,
            operation in WITH_QUERY,
        )
        for vendor, operations in result["vendors"].items()
        for operation, summaries in operations.items()
    ]
    tables += [
        get_processor_table(VENDORS[vendor], summaries, result["processes"])
        for vendor, summaries in result["processor"].items()
        if summaries
    ]
    return tables


def get_processor_table(vendor, summaries, processes):
    return Table(
        "%s, a statement, microseconds of the processor" % vendor,
        ["", "median (range)", "times POOL's", "more than POOL's"],
        [
            [
                get_label(name),
                *format_summary(summary, name == REFERENCE),
                "–" if name == REFERENCE else format_range(summary["more"]),
            ]
            for name, summary in summaries.items()
        ],
        "The client's thread, on one core with the server. Processes measured, one "
        "after the other: %d." % processes,
    )


def get_table(title, note, summaries, with_query):
    columns = ["", "median (range)", "times POOL's"]
    if with_query:
        columns += ["beyond the bare query"]
    rows = []
    for name, summary in summaries.items():
        row = [
            get_label(name),
            format_range(summary),
            "1" if name == REFERENCE else format_ratio(summary["ratio"]),
        ]
        if with_query:
            row.append(format_range(summary["beyond"]) if "beyond" in summary else "–")
        rows.append(row)
    return Table(title, columns, rows, note[0].upper() + note[1:] + ".")


def get_plots(result):
    return [
        Plot.of_groups(
            "requests-%s" % operation,
            {
                "request": "One request: SELECT 1 and close_old_connections()",
                "lending": "Lending and taking back",
                "statement": "One statement: SELECT 1",
            }[operation],
            "microseconds, logarithmic",
            [
                (VENDORS[vendor], operations[operation])
                for vendor, operations in result["vendors"].items()
            ],
            get_label,
        )
        for operation in OPERATIONS
    ]
