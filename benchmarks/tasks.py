"""
Part "tasks": what tasks get, side by side with other pools for asyncio.

Lending and taking back is measured on connections that do nothing. asyncpg's
pool only lends its own, so it lends warm ones to PostgreSQL, and its reset at
each release, which is a round trip, is switched off.

Statements are those of 128 tasks on 10 connections to PostgreSQL, each task in
a loop of `async with`, `SELECT 1`, and fetching the row. With aconnection()
these go through Django's cursor for tasks, otherwise through the driver's
alone.
"""

import asyncio
import gc
from contextlib import AsyncExitStack, ExitStack
from time import perf_counter

from measuring import summarize
from requests_ import DATABASE, get_base_settings
from tables import Plot, Table, format_summary
from workers import Worker

NAME = "tasks"
TITLE = "Tasks of an event loop"

TASKS = 128
CONNECTIONS = 10

DJANGO = "django.db.pool"
ACONNECTION = "aconnection()"
APOOLS = "apools"


# In a worker.


class PGconn:
    # psycopg.pq.TransactionStatus.IDLE.
    transaction_status = 0


class AsyncFake:
    """A connection that does nothing, as all these pools know them."""

    _pool = None

    def __init__(self):
        self.pgconn = PGconn()

    @classmethod
    async def connect(cls, conninfo="", **kwargs):
        return cls()

    async def close(self):
        pass

    async def rollback(self):
        pass


class Fake(AsyncFake):
    def close(self):
        pass

    def rollback(self):
        pass


async def do_nothing(connection):
    pass


async def open_ours(stack, conninfo):
    from django.db.pool import AsyncConnectionPool, BaseConnector

    class Connector(BaseConnector):
        def open(self):
            return Fake()

        def is_clean(self, entry):
            # What psycopg_pool looks at, too.
            return entry.connection.pgconn.transaction_status == 0

    pool = AsyncConnectionPool(Connector(), min_size=CONNECTIONS, max_size=CONNECTIONS)
    await pool.open(wait=True)
    stack.push_async_callback(pool.close)
    return pool.acquire, pool.release


async def open_psycopg_pool(stack, conninfo):
    import psycopg_pool

    pool = psycopg_pool.AsyncConnectionPool(
        connection_class=AsyncFake,
        min_size=CONNECTIONS,
        max_size=CONNECTIONS,
        open=False,
    )
    await pool.open(wait=True)
    stack.push_async_callback(pool.close)
    return pool.getconn, pool.putconn


async def open_asyncpg(stack, conninfo):
    import asyncpg

    pool = await asyncpg.create_pool(
        min_size=CONNECTIONS, max_size=CONNECTIONS, reset=do_nothing, **conninfo
    )
    stack.push_async_callback(pool.close)
    return pool.acquire, pool.release


async def open_sqlalchemy(stack, conninfo):
    from sqlalchemy.engine.default import DefaultDialect
    from sqlalchemy.pool import AsyncAdaptedQueuePool
    from sqlalchemy.util import greenlet_spawn

    pool = AsyncAdaptedQueuePool(
        Fake, pool_size=CONNECTIONS, max_overflow=0, dialect=DefaultDialect()
    )
    stack.callback(pool.dispose)

    async def acquire():
        return await greenlet_spawn(pool.connect)

    async def release(connection):
        await greenlet_spawn(connection.close)

    return acquire, release


POOLS = {
    DJANGO: open_ours,
    "psycopg_pool": open_psycopg_pool,
    "asyncpg": open_asyncpg,
    "SQLAlchemy": open_sqlalchemy,
}


def measure_checkout(conninfo, rounds, seconds):
    """Return {pool: microseconds of each round}, and who is left out."""
    return asyncio.run(_measure_checkout(conninfo, rounds, seconds))


async def _measure_checkout(conninfo, rounds, seconds):
    left_out, opened = [], {}
    async with AsyncExitStack() as stack:
        for name, open_pool in POOLS.items():
            try:
                opened[name] = await open_pool(stack, conninfo)
            except ImportError as e:
                left_out.append("%s is left out: %s." % (name, e))
        for acquire, release in opened.values():
            # What a pool doesn't do with a connection that is new, it does
            # from the second time on.
            for _ in range(2):
                for connection in [await acquire() for _ in range(CONNECTIONS)]:
                    await release(connection)
        gc.collect()
        gc.freeze()
        figures = {name: [] for name in opened}
        for number in range(rounds):
            names = list(opened)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                figures[name].append(await _time(*opened[name], seconds))
    return figures, left_out


async def _time(acquire, release, seconds):
    times = 0
    started_at = now = perf_counter()
    while now < started_at + seconds:
        for _ in range(20):
            await release(await acquire())
        times += 20
        now = perf_counter()
    return (now - started_at) * 1e6 / times


def measure_statements(conninfo, database, rounds, seconds):
    """Return {pool: statements a second, by rounds}, and who is left out."""
    import django
    from django.conf import settings

    pool = {"min_size": CONNECTIONS, "max_size": CONNECTIONS}
    settings.configure(
        DATABASES={"default": {**database, "POOL": pool}},
        INSTALLED_APPS=["django_pool_patch"],
    )
    django.setup()
    return asyncio.run(_measure_statements(conninfo, rounds, seconds))


async def _measure_statements(conninfo, rounds, seconds):
    import psycopg
    import psycopg_pool

    from django.db.pool import aconnection, apools

    async def by_aconnection():
        async with aconnection() as connection:
            async with connection.cursor() as cursor:
                await cursor.execute("SELECT 1")
                await cursor.fetchone()

    async def by_apools():
        async with apools["default"].connection() as connection:
            async with connection.cursor() as cursor:
                await cursor.execute("SELECT 1")
                await cursor.fetchone()

    async def by_psycopg_pool():
        async with theirs.connection() as connection:
            async with connection.cursor() as cursor:
                await cursor.execute("SELECT 1")
                await cursor.fetchone()

    subjects = {
        ACONNECTION: by_aconnection,
        APOOLS: by_apools,
        "psycopg_pool": by_psycopg_pool,
    }
    left_out = []
    async with AsyncExitStack() as stack:
        theirs = psycopg_pool.AsyncConnectionPool(
            psycopg.conninfo.make_conninfo(
                **{"dbname" if k == "database" else k: v for k, v in conninfo.items()}
            ),
            # As Django's backend has them.
            kwargs={
                "autocommit": True,
                "cursor_factory": psycopg.AsyncClientCursor,
                "prepare_threshold": None,
            },
            min_size=CONNECTIONS,
            max_size=CONNECTIONS,
            open=False,
        )
        await theirs.open(wait=True)
        stack.push_async_callback(theirs.close)
        try:
            import asyncpg
        except ImportError as e:
            left_out.append("asyncpg is left out: %s." % e)
        else:
            their_pool = await asyncpg.create_pool(
                min_size=CONNECTIONS, max_size=CONNECTIONS, **conninfo
            )
            stack.push_async_callback(their_pool.close)

            async def by_asyncpg():
                async with their_pool.acquire() as connection:
                    await connection.fetchrow("SELECT 1")

            subjects["asyncpg"] = by_asyncpg
        gc.collect()
        gc.freeze()
        figures = {name: [] for name in subjects}
        for number in range(rounds + 1):
            names = list(subjects)
            begin = number % len(names)
            for name in names[begin:] + names[:begin]:
                figure = await _count(subjects[name], seconds)
                if number:
                    figures[name].append(figure)
    return figures, left_out


async def _count(function, seconds):
    async def work():
        count = 0
        while perf_counter() < deadline:
            await function()
            count += 1
        return count

    started_at = perf_counter()
    deadline = started_at + seconds
    counts = await asyncio.gather(*(work() for _ in range(TASKS)))
    return sum(counts) / (perf_counter() - started_at)


# In the main process.


def run(context):
    result = {"left_out": []}
    with ExitStack() as stack:
        server = context.start_server(stack, "postgresql", result["left_out"])
        if server is None:
            return result
        server.create_database(DATABASE)
        database = get_base_settings(server)
        conninfo = {
            "host": server.host,
            "port": server.port,
            "user": server.user,
            "password": server.password,
            "database": DATABASE,
        }
        context.say("lending and taking back")
        with Worker("checkout") as worker:
            worker.call("checkout.prepare")
            figures, left_out = worker.call(
                "tasks.measure_checkout",
                conninfo=conninfo,
                rounds=2 if context.quick else 31,
                seconds=0.02 if context.quick else 0.2,
            )
        result["left_out"] += left_out
        result["checkout"] = summarize(figures, DJANGO)
        context.say("statements")
        with Worker("statements") as worker:
            figures, left_out = worker.call(
                "tasks.measure_statements",
                conninfo=conninfo,
                database=database,
                rounds=1 if context.quick else 11,
                seconds=0.2 if context.quick else 2,
            )
        result["left_out"] += left_out
        result["statements"] = summarize(figures, "psycopg_pool")
    return result


def get_tables(result):
    tables = []
    if "checkout" in result:
        tables.append(
            Table(
                "Lending and taking back, one task, microseconds",
                ["", "median (range)", "times"],
                [
                    [name, *format_summary(summary, name == DJANGO)]
                    for name, summary in result["checkout"].items()
                ],
            )
        )
    if "statements" in result:
        tables.append(
            Table(
                "%d tasks on %d connections, statements a second"
                % (TASKS, CONNECTIONS),
                ["", "median (range)", "times psycopg_pool's"],
                [
                    [name, *format_summary(summary, name == "psycopg_pool")]
                    for name, summary in result["statements"].items()
                ],
            )
        )
    return tables


def get_plots(result):
    plots = []
    if "checkout" in result:
        plots.append(
            Plot.of_groups(
                "tasks-checkout",
                "Lending and taking back, one task",
                "microseconds, logarithmic",
                [("connections that do nothing", result["checkout"])],
            )
        )
    if "statements" in result:
        plots.append(
            Plot.of_groups(
                "tasks-statements",
                "%d tasks on %d connections" % (TASKS, CONNECTIONS),
                "statements a second",
                [("SELECT 1", result["statements"])],
                logarithmic=False,
            )
        )
    return plots
