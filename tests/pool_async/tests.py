"""
What holds for tasks on real databases: whatever is cancelled, however many
there are, and when servers fail.

POOL_TEST_CANCELLATIONS is how many tasks are cancelled, by default 500. This
takes about ten minutes:

    POOL_TEST_CANCELLATIONS=100000 ./runtests.py --settings=test_postgresql \
        pool_async.tests.CancellationTests.test_cancellations
"""

import asyncio
import contextlib
import functools
import gc
import itertools
import logging
import os
import random
import sys
import threading
import time
import unittest
from importlib.util import find_spec
from unittest import mock

import servers
from asgiref.sync import async_to_sync
from private_database import (
    HAS_SERVER,
    VENDORS,
    Meter,
    PrivateDatabase,
    Sampler,
    alias_for,
)
from reports import ReportsMixin

from django.db import (
    DatabaseError,
    InterfaceError,
    OperationalError,
    connection,
    connections,
)
from django.db.pool import PoolTimeout, aconnection, apools
from django.test import SimpleTestCase

from .models import NumberRow

ALIAS = "pool_async"

CANCELLATIONS = int(os.environ.get("POOL_TEST_CANCELLATIONS", "500"))

# Seconds. Nothing takes that long unless it hangs.
TIMEOUT = 60

# Before Python 3.12, asyncio.wait_for(), by which psycopg waits, forgets that
# its task was cancelled if what it waits for has come at the same time.
LOSES_CANCELLATIONS = sys.version_info < (3, 12) and connection.vendor == "postgresql"


class Steps:
    """
    Await a coroutine, counting how often it waits, and cancel the task when it
    does so for the n-th time, for each n in `cancel_at`: at once or, with
    `is_late`, when what it waits for has come but the task hasn't seen it.
    """

    def __init__(self, coroutine, cancel_at=(), is_late=False):
        self.coroutine = coroutine
        self.cancel_at = cancel_at
        self.is_late = is_late
        self.count = 0
        self.is_cancelled = False

    def __await__(self):
        iterator = self.coroutine.__await__()
        resume = functools.partial(iterator.send, None)
        while True:
            try:
                future = resume()
            except StopIteration as e:
                return e.value
            self.count += 1
            if self.count in self.cancel_at:
                self.cancel(future)
            try:
                value = yield future
            except BaseException as e:
                resume = functools.partial(iterator.throw, e)
            else:
                resume = functools.partial(iterator.send, value)

    def cancel(self, future):
        task = asyncio.current_task()
        self.is_cancelled = True
        if self.is_late and future is not None:
            # Before the task's own callback, which is added later.
            future.add_done_callback(lambda future: task.cancel())
        else:
            task.cancel()

    async def run(self):
        return await self


@unittest.skipUnless(connection.vendor in VENDORS, "There's no way to look into it.")
class AsyncTestCase(ReportsMixin, SimpleTestCase):
    databases = {"default"}

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        # Defined only later, in each test.
        cls.databases = {"default", ALIAS}
        cls.database = PrivateDatabase(ALIAS, cls.make_server())
        cls.addClassCleanup(cls.database.close)

    @classmethod
    def make_server(cls):
        return None

    def setUp(self):
        # Errors that nobody would see.
        self.unraisable = []
        patch = mock.patch.object(sys, "unraisablehook", self.unraisable.append)
        patch.start()
        self.addCleanup(patch.stop)
        # psycopg's warnings of tasks that are cancelled again.
        logger = logging.getLogger("psycopg")
        self.addCleanup(logger.setLevel, logger.level)
        logger.setLevel(logging.ERROR)

    def use_pool(self, **options):
        """Give the alias a new pool, for this test, and return it."""
        pool = self.enter(alias_for(self.database, ALIAS, **options))
        self.meter = self.enter(Meter(pool))
        return pool

    def enter(self, context_manager):
        # enterContext() of newer versions of Python.
        result = context_manager.__enter__()
        self.addCleanup(context_manager.__exit__, None, None, None)
        return result

    def sampling(self, pool):
        """Return a context manager that watches the server's connections."""
        if not HAS_SERVER:
            return contextlib.nullcontext()
        return Sampler(self.database, lambda: pool.stats().closed)

    def run_async(self, coroutine, timeout=TIMEOUT):
        with self.assertNoLogs("asyncio", "ERROR"):
            result = asyncio.run(asyncio.wait_for(coroutine, timeout))
            gc.collect()
        return result

    def wait_until(self, condition, *, details=lambda: None):
        deadline = time.monotonic() + 10
        while not condition():
            self.assertLess(time.monotonic(), deadline, details())
            time.sleep(0.005)

    async def wait_in_loop_until(self, condition):
        deadline = time.monotonic() + 10
        while not condition():
            self.assertLess(time.monotonic(), deadline)
            await asyncio.sleep(0.005)

    def assertLimitHeld(self, pool, sampler=None):
        max_size = pool.options.max_size
        self.assertGreaterEqual(self.meter.highest, 1)
        self.assertLessEqual(self.meter.highest, max_size)
        if sampler is not None:
            self.assertGreater(sampler.samples, 0)
            self.assertLessEqual(sampler.highest, max_size)

    def assertIdle(self, pool):
        """
        Nothing is in use or waiting, the server has the connections that the
        pool says, and nobody complained. Threads may have to come to an end.
        """

        def is_idle():
            stats = pool.stats()
            return (stats.in_use, stats.waiting, stats.connecting) == (
                0,
                0,
                0,
            ) and self.meter.open_now == stats.size == stats.idle

        self.wait_until(is_idle, details=pool.stats)
        stats = pool.stats()
        self.assertEqual((stats.lost, stats.timeouts), (0, 0))
        if HAS_SERVER:
            self.assertEqual(
                self.database.server.wait_for_connection_count(
                    stats.size, self.database.name
                ),
                stats.size,
            )
        gc.collect()
        self.assertEqual(self.unraisable, [])

    async def read(self, number):
        """Read a number that is unique, and nobody else's answer."""
        async with aconnection(ALIAS) as connection:
            async with connection.cursor() as cursor:
                await cursor.execute("SELECT %s", [number])
                self.assertEqual(tuple(await cursor.fetchone()), (number,))

    async def fill(self, pool):
        """Use as many connections at once as there may be."""
        barrier = asyncio.Event()
        entered = []

        async def use(number):
            async with aconnection(ALIAS) as connection:
                entered.append(connection)
                if len(entered) == pool.options.max_size:
                    barrier.set()
                await barrier.wait()
                async with connection.cursor() as cursor:
                    await cursor.execute("SELECT %s", [number])
                    self.assertEqual(tuple(await cursor.fetchone()), (number,))

        await asyncio.gather(*(use(number) for number in range(pool.options.max_size)))
        self.assertEqual(pool.stats().size, pool.options.max_size)


class CancellationTests(AsyncTestCase):
    TASKS = 8
    MAX_SIZE = 4

    LARGE_SQL = {"sqlite": "SELECT %s, hex(zeroblob(25000))"}

    def setUp(self):
        super().setUp()
        self.numbers = itertools.count(1)
        self.pool = self.use_pool(max_size=self.MAX_SIZE)
        self.database.execute("DELETE FROM written_row")
        self.scenarios = [
            self.read,
            self.read_twice,
            self.read_large,
            self.send_large,
            self.iterate,
            self.lend,
            self.write,
            self.write_nested,
        ]
        self.cancelled = 0
        self.problems = []
        self.written = set()

    async def read_twice(self, number):
        async with aconnection(ALIAS) as connection:
            for value in [number, -number]:
                async with connection.cursor() as cursor:
                    await cursor.execute("SELECT %s", [value])
                    self.assertEqual(
                        list(map(tuple, await cursor.fetchall())), [(value,)]
                    )

    async def read_large(self, number):
        sql = self.LARGE_SQL.get(connection.vendor, "SELECT %s, repeat('0', 50000)")
        async with aconnection(ALIAS) as conn, conn.cursor() as cursor:
            await cursor.execute(sql, [number])
            self.assertEqual(tuple(await cursor.fetchone()), (number, "0" * 50000))

    async def send_large(self, number):
        async with aconnection(ALIAS) as connection:
            async with connection.cursor() as cursor:
                await cursor.execute("SELECT %s, %s", [number, "1" * 50000])
                row = await cursor.fetchone()
                self.assertEqual(tuple(row), (number, "1" * 50000))

    async def iterate(self, number):
        numbers = [number, number + 1, -number]
        async with aconnection(ALIAS) as connection:
            async with connection.cursor() as cursor:
                await cursor.execute(
                    "SELECT %s UNION ALL SELECT %s UNION ALL SELECT %s", numbers
                )
                self.assertEqual([value async for value, in cursor], numbers)

    async def lend(self, number):
        async with apools[ALIAS].connection() as driver_connection:
            cursor = await driver_connection.execute("SELECT %s", [number])
            async with cursor:
                self.assertEqual(tuple(await cursor.fetchone()), (number,))

    async def insert(self, connection, number):
        async with connection.cursor() as cursor:
            await cursor.execute("INSERT INTO written_row VALUES (%s)", [number])

    async def write(self, number):
        """Write two rows or none."""
        async with self.writing(), aconnection(ALIAS) as connection:
            async with connection.atomic():
                await self.insert(connection, number)
                await self.read(number)
                await self.insert(connection, number)
            self.written.add(number)

    async def write_nested(self, number):
        async with self.writing(), aconnection(ALIAS) as connection:
            async with connection.atomic():
                await self.insert(connection, number)
                async with connection.atomic():
                    await self.insert(connection, number)
            self.written.add(number)

    def writing(self):
        # SQLite has one writer at a time, and others would wait for it by
        # sleeping.
        if connection.vendor == "sqlite":
            return self.write_lock
        return contextlib.AsyncExitStack()

    async def cancel_many(self, number):
        self.write_lock = asyncio.Lock()
        limits = {}
        for scenario in self.scenarios:
            steps = Steps(scenario(next(self.numbers)))
            await asyncio.create_task(steps.run())
            # Others may have to wait in line besides.
            limits[scenario] = steps.count + 1

        async def work():
            while self.cancelled < number and not self.problems:
                scenario = random.choice(self.scenarios)
                step = random.randint(1, limits[scenario])
                cancel_at = {step}
                if random.random() < 0.2:
                    # Again, in the midst of cleaning up.
                    cancel_at.add(step + random.randint(1, 3))
                is_late = random.random() < 0.5
                steps = Steps(scenario(next(self.numbers)), cancel_at, is_late)
                task = asyncio.create_task(steps.run())
                await asyncio.wait([task])
                if task.cancelled():
                    self.cancelled += 1
                    if steps.is_cancelled:
                        continue
                elif (error := task.exception()) is None and (
                    not steps.is_cancelled or (is_late and LOSES_CANCELLATIONS)
                ):
                    continue
                else:
                    self.errors.append(error)
                self.problems.append(
                    (scenario.__name__, cancel_at, is_late, steps.count, task)
                )

        self.errors = []
        await asyncio.gather(*(work() for _ in range(self.TASKS)))
        await self.wait_in_loop_until(lambda: not self.pool.stats().in_use)
        if not self.problems:
            await self.fill(self.pool)

    def check(self, run):
        with self.sampling(self.pool) as sampler:
            run()
        for error in self.errors:
            if error is not None:
                raise AssertionError(repr(self.problems)) from error
        self.assertEqual(self.problems, [])
        self.assertGreaterEqual(self.cancelled, 1)
        self.assertIdle(self.pool)
        self.assertEqual(self.pool.stats().size, self.MAX_SIZE)
        self.assertLimitHeld(self.pool, sampler)
        counts = self.database.execute(
            "SELECT number, count(*) FROM written_row GROUP BY number"
        )
        self.assertEqual([row for row in counts if row[1] != 2], [])
        self.assertEqual(self.written - {number for number, _ in counts}, set())

    def test_cancellations(self):
        """No connection is lost, and no answer taken for another one's."""
        timeout = TIMEOUT + CANCELLATIONS / 20
        self.check(
            lambda: self.run_async(self.cancel_many(CANCELLATIONS), timeout),
        )
        self.assertGreaterEqual(self.cancelled, CANCELLATIONS)

    @unittest.skipUnless(find_spec("uvloop"), "uvloop isn't installed.")
    def test_uvloop(self):
        self.check(lambda: self.run_in_uvloop(self.cancel_many(CANCELLATIONS // 5)))

    def run_in_uvloop(self, coroutine):
        import uvloop

        loop = uvloop.new_event_loop()
        try:
            loop.run_until_complete(asyncio.wait_for(coroutine, TIMEOUT))
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            loop.close()

    def test_each_step(self):
        """Each scenario is cancelled at each of its steps, one at a time."""

        async def cancel_each():
            self.write_lock = asyncio.Lock()
            self.errors = []
            for scenario in self.scenarios:
                for is_late in [False, True]:
                    for step in itertools.count(1):
                        steps = Steps(scenario(next(self.numbers)), {step}, is_late)
                        task = asyncio.create_task(steps.run())
                        await asyncio.wait([task])
                        self.cancelled += task.cancelled()
                        if not steps.is_cancelled:
                            task.result()
                            break
                        if task.cancelled() or (
                            is_late and LOSES_CANCELLATIONS and not task.exception()
                        ):
                            continue
                        self.errors.append(task.exception())
                        self.problems.append((scenario.__name__, step, is_late))
            await self.fill(self.pool)

        self.check(lambda: self.run_async(cancel_each()))


class ManyTasksTests(AsyncTestCase):
    def test_order_of_arrival(self):
        """1,000 tasks on 10 connections are served as they came."""
        pool = self.use_pool(max_size=10)
        arrived, served = [], []

        async def work(number):
            arrived.append(number)
            async with aconnection(ALIAS) as connection:
                served.append(number)
                async with connection.cursor() as cursor:
                    await cursor.execute("SELECT %s", [number])
                    self.assertEqual(tuple(await cursor.fetchone()), (number,))

        async def work_all():
            apool = apools[ALIAS]
            entries = [await apool.acquire() for _ in range(10)]
            tasks = [asyncio.create_task(work(number)) for number in range(1000)]
            await self.wait_in_loop_until(lambda: pool.stats().waiting == 1000)
            for entry in entries:
                await apool.release(entry)
            await asyncio.gather(*tasks)

        with self.sampling(pool) as sampler:
            self.run_async(work_all())
        self.assertEqual(arrived, list(range(1000)))
        self.assertEqual(served, arrived)
        self.assertLimitHeld(pool, sampler)
        self.assertIdle(pool)
        self.assertEqual(pool.stats().opened, 10)
        self.assertEqual(pool.stats().acquired, 1010)

    def test_cold(self):
        """Nor does it matter that there are no connections yet."""
        pool = self.use_pool(max_size=10)

        async def work_all():
            await asyncio.gather(*(self.read(number) for number in range(1000)))

        with self.sampling(pool) as sampler:
            self.run_async(work_all())
        self.assertLimitHeld(pool, sampler)
        self.assertIdle(pool)
        self.assertEqual(pool.stats().acquired, 1000)

    def test_loops_and_threads(self):
        """Loops come and go, beside threads, and all share one limit."""
        CALLS, LOOP_THREADS, THREADS = 500, 8, 16
        pool = self.use_pool(max_size=5)
        calls = itertools.count()
        calls_done, queries_done, errors = [], [], []
        are_done = threading.Event()

        async def read_many(number):
            await asyncio.gather(self.read(number), self.read(-number))
            async with aconnection(ALIAS) as connection, connection.atomic():
                await self.read(number)

        def call():
            while (number := next(calls)) < CALLS:
                async_to_sync(read_many)(number)
                calls_done.append(number)

        def query():
            rows = NumberRow.objects.using(ALIAS)
            while not are_done.is_set():
                self.assertEqual(rows.get(pk=2).number, 2)
                self.assertEqual(rows.count(), 3)
                # As at the end of a request.
                connections[ALIAS].close()
                queries_done.append(2)

        def run(target):
            try:
                target()
            except BaseException as e:
                errors.append(e)
                are_done.set()

        def start(target, number):
            threads = [
                threading.Thread(target=run, args=[target]) for _ in range(number)
            ]
            for thread in threads:
                thread.start()
            return threads

        with self.sampling(pool) as sampler:
            with self.assertNoLogs("asyncio", "ERROR"):
                loop_threads = start(call, LOOP_THREADS)
                threads = start(query, THREADS)
                for thread in loop_threads:
                    thread.join(TIMEOUT)
                are_done.set()
                for thread in threads:
                    thread.join(TIMEOUT)
                gc.collect()
        if errors:
            raise errors[0]
        self.assertIs(any(thread.is_alive() for thread in threads), False)
        self.assertEqual(sorted(calls_done), list(range(CALLS)))
        self.assertGreater(len(queries_done), THREADS)
        self.assertLimitHeld(pool, sampler)
        self.assertIdle(pool)
        # The pools of loops that are closed go when the next loop comes.
        self.run_async(self.read(1))
        self.assertEqual(len(pool.loops), 1)


class ParallelTests(AsyncTestCase):
    @unittest.skipUnless(HAS_SERVER, "There is no server.")
    def test_parallel(self):
        """Three statements are executed by the server at the same time."""
        pool = self.use_pool(max_size=3)

        async def update(number):
            async with aconnection(ALIAS) as connection:
                async with connection.cursor() as cursor:
                    await cursor.execute(
                        "UPDATE pool_async_numberrow SET number = number WHERE id = %s",
                        [number],
                    )

        async def watch():
            # All wait for the rows at once; then they are let go.
            with self.database.locked_rows():
                tasks = [asyncio.create_task(update(number)) for number in (1, 2, 3)]
                while len(self.database.updating_sessions()) < 3:
                    await asyncio.sleep(0.005)
                self.assertIs(any(task.done() for task in tasks), False)
            await asyncio.gather(*tasks)

        self.run_async(watch(), timeout=10)
        self.assertIdle(pool)
        self.assertEqual(pool.stats().size, 3)

    @unittest.skipUnless(connection.vendor == "sqlite", "SQLite only")
    def test_parallel_sqlite(self):
        """Three statements meet: none is executed before the others."""
        pool = self.use_pool(max_size=3)
        barrier = threading.Barrier(3, timeout=10)

        async def meet():
            async with aconnection(ALIAS) as connection:
                driver_connection = connection._wrapper.connection
                driver_connection.create_function("meet", 0, barrier.wait)
                async with connection.cursor() as cursor:
                    await cursor.execute("SELECT meet()")
                    return (await cursor.fetchone())[0]

        async def meet_all():
            return await asyncio.gather(meet(), meet(), meet())

        self.assertEqual(sorted(self.run_async(meet_all())), [0, 1, 2])
        self.assertIdle(pool)

    @unittest.skipUnless(HAS_SERVER, "There is no server.")
    def test_cancelled_in_server(self):
        """
        A statement that was cancelled while the server executes it leaves
        nothing behind, neither at the server nor in the pool.
        """
        pool = self.use_pool(max_size=2)

        async def update():
            async with aconnection(ALIAS) as connection, connection.atomic():
                async with connection.cursor() as cursor:
                    await cursor.execute("UPDATE pool_async_numberrow SET number = 0")

        async def cancel():
            with self.database.locked_rows():
                tasks = [asyncio.create_task(update()) for _ in range(3)]
                await self.wait_in_loop_until(
                    lambda: len(self.database.updating_sessions()) == 2
                )
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
                self.assertIs(all(task.cancelled() for task in tasks), True)
                # Though the rows are still locked.
                await self.read(1)
                await self.fill(pool)

        self.run_async(cancel())
        self.assertEqual(
            self.database.execute(
                "SELECT count(*) FROM pool_async_numberrow WHERE number = 0"
            ),
            [(0,)],
        )
        self.assertIdle(pool)
        self.assertLimitHeld(pool)


@unittest.skipUnless(connection.vendor == "sqlite", "SQLite only")
class LockTests(AsyncTestCase):
    """
    A cursor that somebody still refers to, as a traceback may, locks what it
    was reading, even after its connection is closed.
    """

    async def leave_open(self, cursors, is_cancelled):
        async with apools[ALIAS].connection() as driver_connection:
            cursor = await driver_connection.execute(
                "SELECT a.id FROM pool_async_numberrow a, pool_async_numberrow b"
            )
            cursors.append(cursor)
            await cursor.fetchone()
            if is_cancelled:
                waiting = Steps(driver_connection.execute("SELECT 1"), {1})
                await waiting

    def check(self, is_cancelled):
        pool = self.use_pool(max_size=1)
        cursors = []

        async def run():
            task = asyncio.create_task(self.leave_open(cursors, is_cancelled))
            await asyncio.wait([task])
            self.assertIs(task.cancelled(), is_cancelled)

        self.run_async(run())
        self.assertIdle(pool)
        self.assertEqual(len(cursors), 1)
        # Its user has given up, but nobody waits for a lock.
        with contextlib.closing(self.database.connect()) as client:
            client.execute("PRAGMA busy_timeout = 0")
            client.execute("INSERT INTO written_row VALUES (0)")

    def test_cursor_left_open(self):
        self.check(is_cancelled=False)

    def test_cursor_of_cancelled_task(self):
        self.check(is_cancelled=True)


@unittest.skipUnless(HAS_SERVER, "There is no server.")
class RecoveryTests(AsyncTestCase):
    def test_terminated_while_idle(self):
        pool = self.use_pool(max_size=5)

        async def terminate():
            await self.fill(pool)
            self.database.server.terminate_connections(self.database.name)
            with self.assertReportsDeath():
                await asyncio.gather(*(self.read(number) for number in range(20)))

        # Until then it's taken for alive without a look.
        with mock.patch("django.db.pool.threads.TRUST_IN_RETURNED", 0):
            self.run_async(terminate())
        self.assertIdle(pool)
        self.assertLimitHeld(pool)

    def test_terminated_while_in_use(self):
        pool = self.use_pool(max_size=2)

        async def use(connection):
            async with connection.cursor() as cursor:
                await cursor.execute("SELECT 1")

        async def terminate(is_in_transaction):
            with self.assertRaises((OperationalError, InterfaceError)):
                async with aconnection(ALIAS) as connection:
                    if is_in_transaction:
                        async with connection.atomic():
                            await use(connection)
                            server.terminate_connections(self.database.name)
                            await use(connection)
                    else:
                        await use(connection)
                        server.terminate_connections(self.database.name)
                        await use(connection)
            await self.read(1)

        server = self.database.server
        for is_in_transaction in [False, True]:
            with self.subTest(is_in_transaction=is_in_transaction):
                self.run_async(terminate(is_in_transaction))
                self.assertIdle(pool)

    def test_terminated_while_executing(self):
        pool = self.use_pool(max_size=2)

        async def update():
            async with aconnection(ALIAS) as connection:
                async with connection.cursor() as cursor:
                    await cursor.execute("UPDATE pool_async_numberrow SET number = 0")

        async def terminate():
            with self.database.locked_rows():
                task = asyncio.create_task(update())
                await self.wait_in_loop_until(
                    lambda: len(self.database.updating_sessions()) == 1
                )
                (session,) = self.database.updating_sessions()
                self.database.end_session(session)
                with self.assertRaises((OperationalError, InterfaceError)):
                    await task
            await self.read(1)

        self.run_async(terminate())
        self.assertIdle(pool)


@unittest.skipUnless(HAS_SERVER, "There is no server.")
class FailingServerTests(AsyncTestCase):
    """On a server of their own, which is stopped and killed."""

    @classmethod
    def make_server(cls):
        server = (
            servers.PostgreSQLServer()
            if connection.vendor == "postgresql"
            else servers.MariaDBServer()
        )
        server.start()
        cls.addClassCleanup(server.close)
        return server

    def setUp(self):
        super().setUp()
        self.pool = self.use_pool(max_size=3)
        self.server = self.database.server

    def test_killed(self):
        async def kill():
            await self.fill(self.pool)
            with self.assertRaises(DatabaseError):
                async with aconnection(ALIAS) as connection:
                    async with connection.cursor() as cursor:
                        await cursor.execute("SELECT 1")
                        await asyncio.to_thread(self.server.restart, kill=True)
                        await cursor.execute("SELECT 1")
            with self.assertReportsDeath():
                await asyncio.gather(*(self.read(number) for number in range(20)))

        self.run_async(kill())
        self.assertIdle(self.pool)
        self.assertLimitHeld(self.pool)

    def test_down(self):
        """Tasks get the connect error, at once, and not a timeout."""

        async def go_down():
            await self.fill(self.pool)
            await asyncio.to_thread(self.server.stop)
            errors = await asyncio.gather(
                *(self.read(number) for number in range(20)), return_exceptions=True
            )
            await asyncio.to_thread(self.server.start)
            await self.read(1)
            return errors

        with self.assertReportsDeath():
            errors = self.run_async(go_down())
        for error in errors:
            self.assertIsInstance(error, OperationalError)
            self.assertNotIsInstance(error, PoolTimeout)
        self.assertIdle(self.pool)


class LibraryTests(AsyncTestCase):
    """What there is to start and to cancel tasks with."""

    def setUp(self):
        super().setUp()
        self.pool = self.use_pool(max_size=2)

    async def wait_forever(self):
        """Execute a statement until cancelled, within locked_rows()."""
        sql = (
            "UPDATE pool_async_numberrow SET number = 0"
            if HAS_SERVER
            else "WITH RECURSIVE c (x) AS (SELECT 1 UNION ALL SELECT x + 1 "
            "FROM c WHERE x > 0) SELECT max(x) FROM c"
        )
        async with aconnection(ALIAS) as conn, conn.atomic():
            async with conn.cursor() as cursor:
                self.started.set()
                await cursor.execute(sql)

    def locked_rows(self):
        # A server may go on after its client is gone: MariaDB always does, and
        # PostgreSQL ignores a cancellation that comes before the statement. So
        # what it does has to end with the block, as waiting for a lock does.
        if HAS_SERVER:
            return self.database.locked_rows()
        return contextlib.nullcontext()

    @unittest.skipUnless(hasattr(asyncio, "TaskGroup"), "Python 3.11 or newer")
    def test_task_group(self):
        async def run():
            async with asyncio.TaskGroup() as group:
                for number in range(20):
                    group.create_task(self.read(number))
            self.started = asyncio.Event()

            async def fail():
                await self.started.wait()
                raise ValueError("of a task")

            with self.locked_rows(), self.assertRaises(ExceptionGroup) as caught:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self.wait_forever())
                    group.create_task(fail())
            self.assertEqual(str(caught.exception.exceptions[0]), "of a task")
            await self.fill(self.pool)

        self.run_async(run())
        self.assertIdle(self.pool)

    @unittest.skipUnless(hasattr(asyncio, "timeout"), "Python 3.11 or newer")
    def test_timeout(self):
        async def run():
            self.started = asyncio.Event()
            with self.locked_rows(), self.assertRaises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await self.wait_forever()
            await self.fill(self.pool)
            # In line.
            async with aconnection(ALIAS):
                async with apools[ALIAS].connection():
                    with self.assertRaises(TimeoutError):
                        async with asyncio.timeout(0.01):
                            # This task has one already.
                            await asyncio.create_task(self.read(1))
                self.assertEqual(self.pool.stats().waiting, 0)

        self.run_async(run())
        self.assertIdle(self.pool)

    def test_to_thread(self):
        """A thread has a connection of its own, of the same pool."""

        def query():
            try:
                return NumberRow.objects.using(ALIAS).get(pk=3).number
            finally:
                connections[ALIAS].close()

        async def run():
            async with aconnection(ALIAS):
                self.assertEqual(await asyncio.to_thread(query), 3)
                self.assertEqual(self.pool.stats().in_use, 1)
            numbers = await asyncio.gather(
                *(asyncio.to_thread(query) for _ in range(20)),
                *(self.read(number) for number in range(20)),
            )
            self.assertEqual(numbers[:20], [3] * 20)

        self.run_async(run())
        self.assertLimitHeld(self.pool)
        self.assertIdle(self.pool)

    @unittest.skipUnless(find_spec("anyio"), "anyio isn't installed.")
    def test_anyio(self):
        """anyio cancels again and again, until a task ends."""
        import anyio

        async def run():
            async with anyio.create_task_group() as group:
                for number in range(20):
                    group.start_soon(self.read, number)
            self.started = asyncio.Event()
            with self.locked_rows():
                async with anyio.create_task_group() as group:
                    group.start_soon(self.wait_forever)
                    group.start_soon(self.wait_forever)
                    await self.started.wait()
                    group.cancel_scope.cancel()
                with anyio.move_on_after(0.05) as scope:
                    await self.wait_forever()
                self.assertIs(scope.cancelled_caught, True)
                await self.fill(self.pool)
            with self.assertRaises(TimeoutError):
                async with aconnection(ALIAS):
                    with anyio.fail_after(0.01):
                        await anyio.sleep(600)

        with self.assertNoLogs("asyncio", "ERROR"):
            anyio.run(run)
        self.assertIdle(self.pool)

    @unittest.skipUnless(find_spec("uvloop"), "uvloop isn't installed.")
    def test_uvloop(self):
        import uvloop

        async def run():
            await asyncio.gather(*(self.read(number) for number in range(50)))
            self.started = asyncio.Event()
            with self.locked_rows():
                task = asyncio.create_task(self.wait_forever())
                await self.started.wait()
                task.cancel()
                await asyncio.wait([task])
                self.assertIs(task.cancelled(), True)
            await self.fill(self.pool)

        with self.assertNoLogs("asyncio", "ERROR"):
            uvloop.run(run())
        self.assertLimitHeld(self.pool)
        self.assertIdle(self.pool)
