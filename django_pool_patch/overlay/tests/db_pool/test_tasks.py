import asyncio
import contextvars
import datetime
import decimal
import gc
import logging
import threading
import unittest
from unittest import mock

from django.db import (
    DatabaseError,
    Error,
    IntegrityError,
    InterfaceError,
    OperationalError,
    ProgrammingError,
    connection,
    connections,
)
from django.db.backends.base.loops import ThreadedCursor
from django.db.backends.signals import connection_created
from django.db.pool import (
    AsyncConnectionPool,
    BasePool,
    PoolError,
    aconnection,
    apools,
    pools,
)
from django.db.transaction import TransactionManagementError
from django.test import override_settings

from .models import Item
from .test_lending import LendingTestCase
from .utils import PATIENCE, wait_until

if connection.vendor == "postgresql":
    from django.db.backends.postgresql.psycopg_any import is_psycopg3
else:
    is_psycopg3 = False

if is_psycopg3:
    from psycopg import rows as psycopg_rows

INSERT = "INSERT INTO db_pool_item (name) VALUES (%s)"

# What selecting it returns.
ONE = ((1,),) if connection.vendor == "mysql" else [(1,)]

# A statement that takes for ever, but for what interrupts it.
ENDLESS = {
    "postgresql": "SELECT pg_sleep(1000) /* endless */",
    "mysql": "SELECT SLEEP(1000) /* endless */",
    "sqlite": (
        "WITH RECURSIVE number(i) AS "
        "(SELECT 1 UNION ALL SELECT i + 1 FROM number) SELECT MAX(i) FROM number"
    ),
}


class TaskTestCase(LendingTestCase):
    """Tests of tasks' connections to the test database."""

    def setUp(self):
        super().setUp()
        connection.close()
        self.addCleanup(connection.close)
        self.use_pool()

    async def wait_until_executing(self):
        """
        Wait until the statement of ENDLESS was sent, or a thread is executing
        it.
        """
        look = {
            "postgresql": (
                "SELECT COUNT(*) FROM pg_stat_activity "
                "WHERE state = 'active' "
                "AND query LIKE 'SELECT pg_sleep%% /* endless */'"
            ),
            "mysql": (
                "SELECT COUNT(*) FROM information_schema.processlist "
                "WHERE info LIKE 'SELECT SLEEP%% /* endless */'"
            ),
        }.get(connection.vendor)
        if look is None:
            while not any(
                entry.connection_in_loop is not None
                and entry.connection_in_loop._pending is not None
                for entry in self.pool._core.all_entries()
            ):
                await asyncio.sleep(0)
            return
        while not await self.aselect(look):
            await asyncio.sleep(0)

    def end_sleep(self):
        """End what goes on at a MySQL server though its client is gone."""
        if connection.vendor == "mysql":
            with connection.cursor() as cursor:
                cursor.execute(
                    "SELECT id FROM information_schema.processlist "
                    "WHERE db = DATABASE() AND info LIKE 'SELECT SLEEP%% /* endless */'"
                )
                for (number,) in cursor.fetchall():
                    cursor.execute("KILL %s", [number])
            connection.close()

    def use_pool(self, changes=None, **options):
        """Have the default alias use a pool of its own during the test."""
        changes = {
            "CONN_MAX_AGE": 0,
            "POOL": {"max_size": 3, "timeout": PATIENCE, **options},
            **(changes or {}),
        }
        patcher = mock.patch.dict(connections.settings["default"], changes)
        patcher.start()
        self.addCleanup(patcher.stop)
        self.pool = pools["default"]
        self.addCleanup(pools.close_pool, self.pool)

    async def execute(self, task_connection, sql, params=None):
        async with task_connection.cursor() as cursor:
            await cursor.execute(sql, params)
            if cursor.description is not None:
                return await cursor.fetchall()

    async def aselect(self, sql="SELECT 1", params=None):
        """Return what a query returns by a connection of its own."""
        async with aconnection() as task_connection:
            ((value,),) = await self.execute(
                task_connection, sql + connection.features.bare_select_suffix, params
            )
        return value

    def assertAllBack(self):
        stats = self.pool.stats()
        self.assertEqual((stats.in_use, stats.waiting, stats.lost), (0, 0, 0))


class CursorTests(TaskTestCase):
    async def test_parameters(self):
        self.assertEqual(await self.aselect("SELECT %s + %s", [40, 2]), 42)
        self.assertEqual(await self.aselect("SELECT '100%'"), "100%")

    async def test_fetching(self):
        async with aconnection() as task_connection:
            async with task_connection.cursor() as cursor:
                await cursor.executemany(INSERT, [["a"], ["b"], ["c"], ["d"]])
                await cursor.execute("SELECT name FROM db_pool_item ORDER BY name")
                self.assertEqual(cursor.description[0][0], "name")
                self.assertEqual(await cursor.fetchone(), ("a",))
                self.assertEqual(list(await cursor.fetchmany(2)), [("b",), ("c",)])
                self.assertEqual(list(await cursor.fetchall()), [("d",)])
                self.assertIsNone(await cursor.fetchone())
                self.assertEqual(list(await cursor.fetchmany(2)), [])
                await cursor.execute("SELECT name FROM db_pool_item ORDER BY name")
                rows = [row async for row in cursor]
                self.assertEqual(rows, [("a",), ("b",), ("c",), ("d",)])
                await cursor.execute("UPDATE db_pool_item SET name = 'x'")
                self.assertEqual(cursor.rowcount, 4)
                self.assertIsNone(cursor.description)

    async def test_many_rows(self):
        """More than what drivers and the network hand over at once."""
        names = [["%050d" % number] for number in range(3000)]
        async with aconnection() as task_connection:
            async with task_connection.cursor() as cursor:
                await cursor.executemany(INSERT, names)
                await cursor.execute("SELECT name FROM db_pool_item ORDER BY name")
                rows = await cursor.fetchall()
                self.assertEqual([list(row) for row in rows], names)
                await cursor.execute("SELECT name FROM db_pool_item ORDER BY name")
                rows = [row async for row in cursor]
                self.assertEqual([list(row) for row in rows], names)

    async def test_long_statement(self):
        text = "x" * 100_000
        self.assertEqual(await self.aselect("SELECT %s", [text]), text)

    async def test_values_are_those_of_threads(self):
        queries = {
            "postgresql": """
                SELECT 1, 1.5::numeric, 'é'::text, NULL, true, '\\x0001'::bytea,
                    '2024-02-29'::date, '12:30'::time, '2024-02-29 12:30'::timestamp,
                    '2024-02-29 12:30+00'::timestamptz, '{"a": 1}'::jsonb,
                    ARRAY[1, 2], '1 day'::interval
            """,
            "mysql": """
                SELECT 1, CAST(1.5 AS DECIMAL(5, 2)), 'é', NULL, true, x'0001',
                    CAST('2024-02-29' AS DATE), CAST('12:30' AS TIME),
                    CAST('2024-02-29 12:30' AS DATETIME), JSON_OBJECT('a', 1)
            """,
            "sqlite": "SELECT 1, 1.5, 'é', NULL, x'0001'",
        }
        sql = queries[connection.vendor]

        def select():
            with connection.cursor() as cursor:
                cursor.execute(sql)
                row = cursor.fetchone()
            connection.close()
            return row

        expected = await asyncio.to_thread(select)
        async with aconnection() as task_connection:
            (row,) = await self.execute(task_connection, sql)
        self.assertEqual(row, expected)
        self.assertEqual(list(map(type, row)), list(map(type, expected)))

    async def test_parameters_are_those_of_threads(self):
        values = ["é%", 1, None, decimal.Decimal("1.50"), datetime.date(2024, 2, 29)]
        sql = "SELECT COALESCE(%s, 'null')"
        if connection.vendor == "postgresql":
            sql = "SELECT COALESCE((%s)::text, 'null')"

        def select(value):
            try:
                return self.select(connection, sql, [value])
            finally:
                connection.close()

        for value in values:
            with self.subTest(value=value):
                expected = await asyncio.to_thread(select, value)
                self.assertEqual(await self.aselect(sql, [value]), expected)

    async def test_errors_are_those_of_django(self):
        async with aconnection() as task_connection:
            for sql, error in [
                ("SELECT nothing FROM nowhere", DatabaseError),
                ("INSERT INTO db_pool_item (name) VALUES (NULL)", IntegrityError),
            ]:
                with self.subTest(sql=sql):
                    with self.assertRaises(error) as cm:
                        await self.execute(task_connection, sql)
                    self.assertIsInstance(
                        cm.exception.__cause__, (task_connection.Database.Error, error)
                    )
            # It's as good as before.
            self.assertEqual(await self.execute(task_connection, "SELECT 1"), ONE)
        self.assertEqual(self.pool.stats().opened, 1)

    async def test_after_the_block(self):
        async with aconnection() as task_connection:
            cursor = task_connection.cursor()
            await cursor.execute("SELECT 1")
        self.assertIsNone(task_connection.connection)
        with self.assertRaisesMessage(InterfaceError, "given back at the end"):
            task_connection.cursor()
        with self.assertRaisesMessage(InterfaceError, "given back at the end"):
            await cursor.execute("SELECT 1")
        with self.assertRaisesMessage(InterfaceError, "given back at the end"):
            await cursor.executemany(INSERT, [["lost"]])
        if isinstance(cursor.cursor, ThreadedCursor):
            with self.assertRaisesMessage(InterfaceError, "may be in use by others"):
                await cursor.fetchall()

    async def test_drivers_connection(self):
        async with aconnection() as task_connection:
            self.assertEqual(task_connection.vendor, connection.vendor)
            self.assertEqual(task_connection.alias, "default")
            cursor = await task_connection.connection.execute("SELECT 1")
            self.assertEqual((await cursor.fetchone())[0], 1)
        async with apools["default"].connection() as driver_connection:
            cursor = await driver_connection.execute("SELECT 1")
            self.assertEqual((await cursor.fetchone())[0], 1)
        self.assertEqual(self.pool.stats().opened, 1)

    async def test_connections_are_those_of_threads(self):
        await self.aselect()

        def select():
            value = self.select(connection)
            connection.close()
            return value

        self.assertEqual(await asyncio.to_thread(select), 1)
        await self.aselect()
        self.assertEqual(self.pool.stats().opened, 1)
        self.assertAllBack()


class DebuggingTests(TaskTestCase):
    async def test_execute_wrapper(self):
        calls = []

        def plain(execute, sql, params, many, context):
            calls.append(("plain", sql, params, many))
            return execute(sql, params, many, context)

        async def coroutine(execute, sql, params, many, context):
            calls.append(("coroutine", context["connection"], context["cursor"]))
            return await execute(sql, params, many, context)

        async with aconnection() as task_connection:
            with task_connection.execute_wrapper(plain):
                with task_connection.execute_wrapper(coroutine):
                    async with task_connection.cursor() as cursor:
                        await cursor.execute("SELECT %s", [1])
                        self.assertEqual((await cursor.fetchone())[0], 1)
            await self.execute(task_connection, "SELECT 2")
        self.assertEqual(
            calls,
            [
                ("plain", "SELECT %s", [1], False),
                ("coroutine", task_connection, cursor),
            ],
        )

    async def test_execute_wrapper_that_blocks(self):
        def block(*args):
            raise RuntimeError("No queries here.")

        async with aconnection() as task_connection:
            with task_connection.execute_wrapper(block):
                with self.assertRaisesMessage(RuntimeError, "No queries here."):
                    await self.execute(task_connection, "SELECT 1")

    async def test_queries(self):
        async with aconnection() as task_connection:
            await self.execute(task_connection, "SELECT 1")
            self.assertEqual(task_connection.queries, [])
            task_connection.force_debug_cursor = True
            with self.assertLogs("django.db.backends", logging.DEBUG) as cm:
                async with task_connection.atomic():
                    await self.execute(task_connection, "SELECT %s", ["text"])
                    async with task_connection.cursor() as cursor:
                        await cursor.executemany(INSERT, [["a"], ["b"]])
            statements = [query["sql"] for query in task_connection.queries]
            self.assertEqual(statements[0], "BEGIN")
            self.assertIn("text", statements[1])
            self.assertEqual(statements[2], "2 times: %s" % INSERT)
            self.assertEqual(statements[3], "COMMIT")
            self.assertEqual([record.alias for record in cm.records], ["default"] * 4)
            self.assertGreater(float(task_connection.queries[1]["time"]), -1)

    @override_settings(DEBUG=True)
    async def test_debug(self):
        async with aconnection() as task_connection:
            with self.assertLogs("django.db.backends", logging.DEBUG) as cm:
                with self.assertRaises(DatabaseError):
                    await self.execute(task_connection, "SELECT nothing FROM nowhere")
            self.assertEqual(len(task_connection.queries), 1)
        self.assertIn("SELECT nothing FROM nowhere", cm.output[0])


class AtomicTests(TaskTestCase):
    async def anames(self):
        async with aconnection() as task_connection:
            rows = await self.execute(
                task_connection, "SELECT name FROM db_pool_item ORDER BY name"
            )
        return [name for name, in rows]

    async def ainsert(self, task_connection, name):
        await self.execute(task_connection, INSERT, [name])

    async def test_commit_and_rollback(self):
        async with aconnection() as task_connection:
            async with task_connection.atomic():
                self.assertIs(task_connection.in_atomic_block, True)
                await self.ainsert(task_connection, "kept")
            self.assertIs(task_connection.in_atomic_block, False)
            with self.assertRaisesMessage(ValueError, "mine"):
                async with task_connection.atomic():
                    await self.ainsert(task_connection, "lost")
                    raise ValueError("mine")
            self.assertEqual(await self.anames(), ["kept"])
        self.assertAllBack()
        self.assertEqual(self.pool.stats().resets, 0)

    async def test_isolation(self):
        """What isn't committed is seen by nobody else."""
        async with aconnection() as task_connection:
            async with task_connection.atomic():
                await self.ainsert(task_connection, "kept")
                # In this one there is no connection to be seen.
                task = contextvars.Context().run(asyncio.create_task, self.anames())
                self.assertEqual(await task, [])
        self.assertEqual(await self.anames(), ["kept"])

    async def test_savepoints(self):
        async with aconnection() as task_connection:
            async with task_connection.atomic():
                await self.ainsert(task_connection, "a")
                with self.assertRaises(ValueError):
                    async with task_connection.atomic():
                        await self.ainsert(task_connection, "b")
                        async with task_connection.atomic():
                            await self.ainsert(task_connection, "c")
                        raise ValueError
                with self.assertRaises(IntegrityError):
                    async with task_connection.atomic():
                        await self.ainsert(task_connection, None)
                async with task_connection.atomic():
                    await self.ainsert(task_connection, "d")
        self.assertEqual(await self.anames(), ["a", "d"])

    async def test_cancelled_while_ending_a_savepoint(self):
        """What was to be rolled back isn't committed by an outer block."""
        for error in (None, ValueError):
            with self.subTest(error=error):
                async with aconnection() as task_connection:
                    async with task_connection.atomic():
                        with (
                            mock.patch.object(
                                task_connection,
                                "savepoint_rollback",
                                side_effect=asyncio.CancelledError,
                            ),
                            mock.patch.object(
                                task_connection,
                                "savepoint_commit",
                                side_effect=asyncio.CancelledError,
                            ),
                            self.assertRaises(asyncio.CancelledError),
                        ):
                            async with task_connection.atomic():
                                await self.ainsert(task_connection, "lost")
                                if error is not None:
                                    raise error
                        self.assertIs(task_connection.needs_rollback, True)
                self.assertEqual(await self.anames(), [])

    async def test_no_savepoint(self):
        async with aconnection() as task_connection:
            async with task_connection.atomic():
                await self.ainsert(task_connection, "lost")
                with self.assertRaises(ValueError):
                    async with task_connection.atomic(savepoint=False):
                        raise ValueError
                self.assertIs(task_connection.get_rollback(), True)
                with self.assertRaises(TransactionManagementError):
                    await self.ainsert(task_connection, "lost")
            await self.ainsert(task_connection, "kept")
        self.assertEqual(await self.anames(), ["kept"])

    async def test_durable(self):
        async with aconnection() as task_connection:
            async with task_connection.atomic(durable=True):
                await self.ainsert(task_connection, "kept")
                msg = "A durable atomic block cannot be nested within another"
                with self.assertRaisesMessage(RuntimeError, msg):
                    async with task_connection.atomic(durable=True):
                        self.fail("It can't be entered.")
        self.assertEqual(await self.anames(), ["kept"])

    async def test_set_rollback(self):
        async with aconnection() as task_connection:
            with self.assertRaises(TransactionManagementError):
                task_connection.set_rollback(True)
            async with task_connection.atomic():
                await self.ainsert(task_connection, "lost")
                task_connection.set_rollback(True)
        self.assertEqual(await self.anames(), [])

    async def test_decorator(self):
        async with aconnection() as task_connection:

            @task_connection.atomic()
            async def insert(name, error=None):
                await self.ainsert(task_connection, name)
                if error is not None:
                    raise error
                return name

            self.assertEqual(await insert("kept"), "kept")
            with self.assertRaises(ValueError):
                await insert("lost", ValueError())
        self.assertEqual(await self.anames(), ["kept"])

    async def test_on_commit(self):
        calls = []

        async def call(value):
            calls.append(value)

        async with aconnection() as task_connection:
            await task_connection.on_commit(lambda: calls.append("at once"))
            async with task_connection.atomic():
                await task_connection.on_commit(lambda: calls.append("first"))
                await task_connection.on_commit(lambda: call("second"))
                with self.assertRaises(ValueError):
                    async with task_connection.atomic():
                        await task_connection.on_commit(lambda: calls.append("never"))
                        raise ValueError
                self.assertEqual(calls, ["at once"])
            self.assertEqual(calls, ["at once", "first", "second"])
            with self.assertRaises(ValueError):
                async with task_connection.atomic():
                    await task_connection.on_commit(lambda: calls.append("never"))
                    raise ValueError
            async with task_connection.atomic():
                pass
            self.assertEqual(calls, ["at once", "first", "second"])
            with self.assertRaisesMessage(TypeError, "must be a callable"):
                await task_connection.on_commit("text")

    async def test_on_commit_robust(self):
        calls = []

        def fail():
            raise ValueError("robust")

        async with aconnection() as task_connection:
            with self.assertLogs("django.db.backends.base", logging.ERROR) as cm:
                async with task_connection.atomic():
                    await task_connection.on_commit(fail, robust=True)
                    await task_connection.on_commit(lambda: calls.append(1))
            self.assertIn("fail in on_commit()", cm.output[0])
            with self.assertRaisesMessage(ValueError, "robust"):
                async with task_connection.atomic():
                    await self.ainsert(task_connection, "kept")
                    await task_connection.on_commit(fail)
        self.assertEqual(calls, [1])
        self.assertEqual(await self.anames(), ["kept"])

    async def test_cancelled(self):
        async def insert_and_wait():
            async with aconnection() as task_connection:
                async with task_connection.atomic():
                    await self.ainsert(task_connection, "lost")
                    inserted.set()
                    await asyncio.Event().wait()

        inserted = asyncio.Event()
        task = asyncio.create_task(insert_and_wait())
        await inserted.wait()
        task.cancel()
        with self.assertRaises(asyncio.CancelledError):
            await task
        self.assertAllBack()
        self.assertEqual(await self.anames(), [])
        self.assertEqual(self.pool.stats().opened, 1)

    async def test_cancelled_while_beginning(self):
        """What follows isn't part of a transaction that nobody commits."""
        async with aconnection() as task_connection:
            in_loop_class = type(task_connection.connection)
        begin = in_loop_class.begin

        async def begin_and_cancel(self):
            asyncio.current_task().cancel()
            await begin(self)

        async def use():
            async with aconnection() as task_connection:
                with mock.patch.object(in_loop_class, "begin", begin_and_cancel):
                    with self.assertRaises(asyncio.CancelledError):
                        async with task_connection.atomic():
                            self.fail("It was cancelled.")
                if connection.vendor == "mysql":
                    # The connection can't be used anymore, and says so.
                    with self.assertRaisesMessage(InterfaceError, "End the block."):
                        await self.ainsert(task_connection, "kept")
                    with self.assertRaisesMessage(InterfaceError, "End the block."):
                        async with task_connection.atomic():
                            pass
                    return []
                await self.ainsert(task_connection, "kept")
                return ["kept"]

        kept = await asyncio.create_task(use())
        self.assertEqual(await self.anames(), kept)
        await asyncio.to_thread(wait_until, lambda: not self.pool.stats().in_use)
        self.assertAllBack()

    async def test_left_in_a_transaction(self):
        """Nobody gets into another's transaction."""
        async with aconnection() as task_connection:
            await task_connection.connection.begin()
            await self.ainsert(task_connection, "lost")
        self.assertEqual(await self.anames(), [])
        async with aconnection() as task_connection:
            await self.execute(task_connection, "BEGIN")
            await self.ainsert(task_connection, "lost")
        self.assertEqual(await self.anames(), [])
        async with apools["default"].connection() as driver_connection:
            await driver_connection.execute("BEGIN")
            await driver_connection.execute(INSERT, ["lost"])
        self.assertEqual(await self.anames(), [])
        self.assertAllBack()


class ScopeTests(TaskTestCase):
    async def test_nested(self):
        async with aconnection() as outer:
            async with aconnection() as inner:
                self.assertIs(inner, outer)
            self.assertEqual(await self.execute(outer, "SELECT 1"), ONE)
            self.assertEqual(self.pool.stats().in_use, 1)
        self.assertAllBack()

    async def test_tasks_have_their_own(self):
        barrier = asyncio.Event()
        found = []

        async def use():
            async with aconnection() as task_connection:
                found.append(task_connection)
                if len(found) == 3:
                    barrier.set()
                await barrier.wait()
                return await self.execute(task_connection, "SELECT 1")

        await asyncio.gather(use(), use(), use())
        self.assertEqual(len(set(map(id, found))), 3)
        self.assertEqual(self.pool.stats().opened, 3)

    async def test_child_has_its_own(self):
        async def use():
            async with aconnection() as task_connection:
                async with aconnection() as again:
                    self.assertIs(again, task_connection)
                return task_connection

        async with aconnection() as outer:
            self.assertIsNot(await asyncio.create_task(use()), outer)
            async with aconnection() as again:
                self.assertIs(again, outer)
        self.assertAllBack()

    async def test_child_of_a_transaction(self):
        async def use():
            async with aconnection():
                self.fail("That would be outside of the transaction.")

        async def use_twice():
            # Its own ended, which doesn't change what its parent does.
            for _ in range(2):
                with self.assertRaisesMessage(PoolError, "in a transaction"):
                    async with aconnection():
                        pass
            return True

        async with aconnection() as outer:
            async with outer.atomic():
                msg = "The task that started this one is in a transaction on 'default'"
                with self.assertRaisesMessage(PoolError, msg):
                    await asyncio.create_task(use())
                self.assertIs(await asyncio.create_task(use_twice()), True)
            # A transaction that began later is as much of one.
            began = asyncio.Event()

            async def use_later():
                async with aconnection():
                    pass
                await began.wait()
                with self.assertRaisesMessage(PoolError, msg):
                    async with aconnection():
                        pass

            task = asyncio.create_task(use_later())
            while self.pool.stats().acquired < 2:
                await asyncio.sleep(0)
            async with outer.atomic():
                began.set()
                await task
        self.assertAllBack()

    async def test_task_that_outlives_its_parent(self):
        async def use():
            await ended.wait()
            return await self.aselect()

        ended = asyncio.Event()
        async with aconnection() as outer:
            async with outer.atomic():
                task = asyncio.create_task(use())
        ended.set()
        self.assertEqual(await task, 1)

    async def test_collected(self):
        """A task that is collected may interrupt whoever holds the lock."""

        async def use_connection():
            async with aconnection():
                await asyncio.Event().wait()

        async def use_pool():
            async with apools["default"].connection():
                await asyncio.Event().wait()

        async def use_cursor():
            async with aconnection() as task_connection:
                async with task_connection.cursor():
                    await asyncio.Event().wait()

        for function in (use_connection, use_pool, use_cursor):
            with self.subTest(function=function):
                # Warm, so that it's lent at once.
                await self.aselect()
                coroutine = function()
                coroutine.send(None)
                self.assertEqual(self.pool.stats().in_use, 1)
                with self.pool._lock:
                    coroutine.close()
                self.assertEqual(await self.aselect(), 1)
                await asyncio.to_thread(
                    wait_until, lambda: not self.pool.stats().in_use
                )
                self.assertAllBack()

    def test_collected_after_its_loop(self):
        """Whatever it was in the midst of, its connection isn't lost."""
        loop = asyncio.new_event_loop()

        async def use():
            async with aconnection() as task_connection:
                async with task_connection.atomic():
                    async with task_connection.cursor() as cursor:
                        await cursor.execute(INSERT, ["lost"])
                        loop.stop()
                        await asyncio.Event().wait()

        # Task complains of being pending when it's collected.
        loop.set_exception_handler(lambda loop, context: None)
        task = loop.create_task(use())
        loop.run_forever()
        self.assertEqual(self.pool.stats().in_use, 1)
        loop.close()
        del task
        gc.collect()
        self.assertEqual(asyncio.run(self.aselect()), 1)
        wait_until(lambda: not self.pool.stats().in_use)
        self.assertEqual(list(Item.objects.all()), [])
        connection.close()
        self.assertEqual(self.pool.stats().in_use, 0)

    async def test_statement_that_waits_while_its_block_ends(self):
        """It isn't executed on what is somebody else's by then."""
        async with aconnection() as task_connection:
            in_loop = task_connection.connection
            lock = in_loop.lock if is_psycopg3 else in_loop._lock
            await lock.acquire()
            task = asyncio.create_task(self.execute(task_connection, INSERT, ["lost"]))
            while not lock._waiters:
                await asyncio.sleep(0)
            # From here on there is nothing that would let the task go on.
            lock.release()
        with self.assertRaises(Error):
            await task
        self.assertEqual(await self.aselect("SELECT COUNT(*) FROM db_pool_item"), 0)
        await asyncio.to_thread(wait_until, lambda: not self.pool.stats().in_use)
        self.assertAllBack()

    async def test_unknown_alias(self):
        with self.assertRaisesMessage(KeyError, "There is no database 'nowhere'"):
            async with aconnection("nowhere"):
                pass

    async def test_without_pool(self):
        with mock.patch.dict(connections.settings["default"], {"POOL": False}):
            with self.assertRaisesMessage(KeyError, "has no pool"):
                async with aconnection():
                    pass

    async def test_pool_of_another_class(self):
        class OtherPool(BasePool):
            def close(self, timeout=5.0):
                return True

        with mock.patch.dict(
            connections.settings["default"], {"POOL": {"pool_class": OtherPool}}
        ):
            msg = "OtherPool can't lend connections to tasks. Remove 'pool_class'"
            with self.assertRaisesMessage(PoolError, msg):
                apools["default"]

    def test_without_loop(self):
        with self.assertRaisesMessage(PoolError, "without a running event loop"):
            apools["default"]

    def test_loops_come_and_go(self):
        for _ in range(5):
            self.assertEqual(asyncio.run(self.aselect()), 1)
        stats = self.pool.stats()
        self.assertEqual((stats.opened, stats.acquired), (1, 5))
        # Of those that are closed, the next one leaves nothing.
        self.assertEqual(len(self.pool.loops), 1)

    async def test_pool_is_found_by_settings(self):
        """As when a test database takes the place of another one."""
        first = apools["default"]
        self.assertIs(apools["default"], first)
        with mock.patch.dict(
            connections.settings["default"], {"POOL": {"max_size": 1}}
        ):
            self.assertIsNot(apools["default"], first)
            self.assertEqual(apools["default"].options.max_size, 1)

    def test_other_wrappers(self):
        """Whoever subclasses the backend may have another class of pools."""

        class OtherPool(AsyncConnectionPool):
            pass

        async def get_class():
            return type(apools["default"])

        wrapper_class = type(connections["default"])
        with mock.patch.object(wrapper_class, "async_pool_class", OtherPool):
            self.assertIs(asyncio.run(get_class()), OtherPool)


class StateTests(TaskTestCase):
    """What a task does to a session is gone with its block."""

    SETTINGS = {
        "postgresql": (
            "SET application_name = 'touched'",
            "SELECT current_setting('application_name')",
        ),
        "mysql": ("SET @touched = 'touched'", "SELECT @touched"),
        "sqlite": ("PRAGMA cache_size = 4321", "SELECT * FROM pragma_cache_size"),
    }

    async def test_touched(self):
        touch, look = self.SETTINGS[connection.vendor]
        before = await self.aselect(look)
        async with aconnection() as task_connection:
            await self.execute(task_connection, touch)
            ((value,),) = await self.execute(task_connection, look)
            self.assertNotEqual(value, before)
        self.assertEqual(await self.aselect(look), before)

    async def test_touched_by_the_drivers_connection(self):
        touch, look = self.SETTINGS[connection.vendor]
        before = await self.aselect(look)
        async with apools["default"].connection() as driver_connection:
            await driver_connection.execute(touch)
        self.assertEqual(await self.aselect(look), before)
        async with apools["default"].connection() as driver_connection:
            async with driver_connection.cursor() as cursor:
                await cursor.execute(touch)
        self.assertEqual(await self.aselect(look), before)

    async def test_untouched_costs_nothing(self):
        for _ in range(3):
            await self.aselect()
        stats = self.pool.stats()
        self.assertEqual((stats.resets, stats.checks, stats.opened), (0, 0, 1))

    async def test_cancelled_statement(self):
        self.addCleanup(self.end_sleep)

        async def use():
            async with aconnection() as task_connection:
                await self.execute(task_connection, ENDLESS[connection.vendor])

        task = asyncio.create_task(use())
        await self.wait_until_executing()
        task.cancel()
        with self.assertRaises(asyncio.CancelledError):
            await task
        for number in range(5):
            self.assertEqual(await self.aselect("SELECT %s + 0", [number]), number)
        await asyncio.to_thread(wait_until, lambda: not self.pool.stats().in_use)
        self.assertAllBack()
        # Only psycopg 3 knows when a statement has been cancelled.
        closed = 0 if is_psycopg3 else 1
        await asyncio.to_thread(wait_until, lambda: self.pool.stats().closed == closed)


class SignalTests(TaskTestCase):
    """connection_created prepares tasks' connections as well."""

    def connect_receiver(self, receiver):
        connection_created.connect(receiver)
        self.addCleanup(connection_created.disconnect, receiver)

    async def test_once_for_each_connection(self):
        calls = []

        def receive(sender, connection, **kwargs):
            # Nothing keeps it from asking the database.
            calls.append((sender, connection.alias, self.select(connection)))

        self.connect_receiver(receive)
        for _ in range(3):
            self.assertEqual(await self.aselect(), 1)
        self.assertEqual(calls, [(type(connections["default"]), "default", 1)])
        self.assertEqual(self.pool.stats().opened, 1)
        self.assertAllBack()

    async def test_what_it_sets_stays(self):
        touch, look = StateTests.SETTINGS[connection.vendor]

        def receive(sender, connection, **kwargs):
            with connection.cursor() as cursor:
                cursor.execute(touch)

        before = await self.aselect(look)
        self.connect_receiver(receive)
        for _ in range(2):
            self.assertNotEqual(await self.aselect(look), before)
        # Also when the session was reset.
        async with aconnection() as task_connection:
            await self.execute(task_connection, touch)
        self.assertNotEqual(await self.aselect(look), before)

    async def test_receiver_that_raises(self):
        def receive(**kwargs):
            raise ValueError("receiver")

        self.connect_receiver(receive)
        with self.assertRaisesMessage(ValueError, "receiver"):
            await self.aselect()
        connection_created.disconnect(receive)
        self.assertEqual(await self.aselect(), 1)
        await asyncio.to_thread(wait_until, lambda: not self.pool.stats().in_use)
        self.assertAllBack()

    async def test_cancelled(self):
        entered, left = threading.Event(), threading.Event()

        def receive(**kwargs):
            entered.set()
            left.wait(PATIENCE)

        self.connect_receiver(receive)
        task = asyncio.create_task(self.aselect())
        await asyncio.to_thread(entered.wait, PATIENCE)
        task.cancel()
        with self.assertRaises(asyncio.CancelledError):
            await task
        left.set()
        connection_created.disconnect(receive)
        await asyncio.to_thread(wait_until, lambda: not self.pool.stats().in_use)
        self.assertAllBack()
        self.assertEqual(await self.aselect(), 1)


@unittest.skipUnless(is_psycopg3, "psycopg 3 only")
class PsycopgTests(TaskTestCase):
    def use_in_thread(self, function):
        """Call a function with the driver's connection, in a thread."""

        def use():
            connection.ensure_connection()
            try:
                return function(connection.connection)
            finally:
                connection.close()

        return asyncio.to_thread(use)

    async def test_class(self):
        import psycopg

        async with aconnection() as task_connection:
            self.assertIsInstance(task_connection.connection, psycopg.AsyncConnection)
            async with task_connection.cursor() as cursor:
                self.assertIsInstance(cursor.cursor, psycopg.AsyncClientCursor)

    async def test_callproc(self):
        async with aconnection() as task_connection:
            async with task_connection.cursor() as cursor:
                self.assertEqual(await cursor.callproc("lower", ["TEXT"]), ["TEXT"])
                self.assertEqual(await cursor.fetchall(), [("text",)])
                await cursor.callproc("pg_backend_pid")
                self.assertEqual(len(await cursor.fetchall()), 1)

    async def test_server_side_binding(self):
        import psycopg

        options = connections.settings["default"]["OPTIONS"]
        self.use_pool({"OPTIONS": {**options, "server_side_binding": True}})
        async with aconnection() as task_connection:
            async with task_connection.cursor() as cursor:
                self.assertNotIsInstance(cursor.cursor, psycopg.AsyncClientCursor)
                await cursor.execute("SELECT %s::int", [1])
                self.assertEqual(await cursor.fetchall(), [(1,)])

    async def test_streams_and_named_cursors_are_noted(self):
        self.use_pool(max_size=1)
        look = "SELECT current_setting('application_name')"
        before = await self.aselect(look)
        async with apools["default"].connection() as driver_connection:
            async with driver_connection.cursor() as cursor:
                sql = "SELECT set_config('application_name', 'touched', false)"
                self.assertEqual(
                    [row async for row in cursor.stream(sql)], [("touched",)]
                )
        self.assertEqual(await self.aselect(look), before)
        for _ in range(2):
            async with apools["default"].connection() as driver_connection:
                cursor = driver_connection.cursor("same_name", withhold=True)
                await cursor.execute("SELECT 1")
                # psycopg complains of those that aren't closed.
                cursor._closed = True
        self.assertEqual(await self.aselect(), 1)

    async def test_attributes_of_the_object(self):
        self.use_pool(max_size=1)
        notices = []
        async with apools["default"].connection() as driver_connection:
            driver_connection.row_factory = psycopg_rows.dict_row
            driver_connection.add_notice_handler(notices.append)
        async with apools["default"].connection() as driver_connection:
            cursor = await driver_connection.execute("SELECT 1")
            self.assertEqual(await cursor.fetchone(), (1,))
            await driver_connection.execute("DO $$ BEGIN RAISE NOTICE 'x'; END $$")
        self.assertEqual(notices, [])

    async def test_prepared_statements(self):
        """Threads and tasks prepare them on the same connection by turns."""
        options = connections.settings["default"]["OPTIONS"]
        self.use_pool(
            {
                "OPTIONS": {
                    **options,
                    "prepare_threshold": 0,
                    "server_side_binding": True,
                }
            },
            max_size=1,
        )
        for number in range(3):
            sql = "SELECT %%s::int + %d" % number
            self.assertEqual(await self.aselect(sql, [1]), number + 1)
            rows = await self.use_in_thread(
                lambda driver_connection: driver_connection.execute(
                    "SELECT %%s::int - %d" % number, [1]
                ).fetchall()
            )
            self.assertEqual(rows, [(1 - number,)])
            self.assertEqual(await self.aselect(sql, [2]), number + 2)
        self.assertEqual(self.pool.stats().opened, 1)

    async def test_notices(self):
        """Each of the two objects of a connection gets its own."""
        self.use_pool(max_size=1)
        notices = []
        raise_notice = "DO $$ BEGIN RAISE NOTICE '%s'; END $$"

        def note_in_thread(diagnostic):
            notices.append(("thread", diagnostic.message_primary))

        def note_in_task(diagnostic):
            notices.append(("task", diagnostic.message_primary))

        def use(driver_connection):
            driver_connection.add_notice_handler(note_in_thread)
            driver_connection.execute(raise_notice % 1)

        def use_again(driver_connection):
            driver_connection.execute(raise_notice % 3)
            driver_connection.remove_notice_handler(note_in_thread)

        await self.use_in_thread(use)
        async with apools["default"].connection() as driver_connection:
            driver_connection.add_notice_handler(note_in_task)
            await driver_connection.execute(raise_notice % 2)
            driver_connection.remove_notice_handler(note_in_task)
        await self.use_in_thread(use_again)
        self.assertEqual(notices, [("thread", "1"), ("task", "2"), ("thread", "3")])

    async def test_changed_attributes(self):
        self.use_pool(max_size=1)
        async with apools["default"].connection() as driver_connection:
            await driver_connection.set_autocommit(False)
            await driver_connection.set_read_only(True)
            await driver_connection.execute("SELECT 1")
        async with apools["default"].connection() as other:
            self.assertIs(other.autocommit, True)
            self.assertIsNone(other.read_only)
        self.assertEqual(self.pool.stats().opened, 1)

    async def test_closed_by_hand(self):
        async with apools["default"].connection() as driver_connection:
            await driver_connection.close()
        self.assertEqual(await self.aselect(), 1)
        self.assertAllBack()

    async def test_pipeline(self):
        async with apools["default"].connection() as driver_connection:
            async with driver_connection.pipeline():
                cursors = [
                    await driver_connection.cursor().execute("SELECT %s::int", [number])
                    for number in range(3)
                ]
                rows = [await cursor.fetchone() for cursor in cursors]
        self.assertEqual(rows, [(0,), (1,), (2,)])


@unittest.skipUnless(connection.vendor == "mysql", "MySQL only")
class MySQLTests(TaskTestCase):
    async def test_several_results(self):
        async with aconnection() as task_connection:
            async with task_connection.cursor() as cursor:
                await cursor.execute("SELECT 1; SELECT 2; SELECT 3")
                self.assertEqual(await cursor.fetchall(), ((1,),))
                self.assertIs(await cursor.nextset(), True)
                self.assertEqual(await cursor.fetchall(), ((2,),))
                # What is left doesn't get in the way.
                await cursor.execute("SELECT 4")
                self.assertEqual(await cursor.fetchall(), ((4,),))
                self.assertIsNone(await cursor.nextset())
            await self.execute(task_connection, "SELECT 5; SELECT 6")
        self.assertEqual(await self.aselect("SELECT 7"), 7)

    async def test_callproc(self):
        async with aconnection() as task_connection:
            await self.execute(
                task_connection,
                "CREATE PROCEDURE db_pool_double(number INTEGER) SELECT 2 * number",
            )
            try:
                async with task_connection.cursor() as cursor:
                    self.assertEqual(await cursor.callproc("db_pool_double", [2]), [2])
                    self.assertEqual(await cursor.fetchall(), ((4,),))
                    # A procedure ends with a result of its own.
                    await cursor.nextset()
                    self.assertIsNone(await cursor.nextset())
            finally:
                await self.execute(task_connection, "DROP PROCEDURE db_pool_double")

    async def test_results_left_unread(self):
        self.use_pool(max_size=1)
        async with aconnection() as task_connection:
            async with task_connection.cursor() as cursor:
                await cursor.execute("SELECT 1; SELECT 2; SELECT 3")
                await cursor.executemany(INSERT, [["a"], ["b"]])
                self.assertEqual(cursor.rowcount, 2)
                await cursor.execute("SELECT 1; SELECT 2; SELECT 3")
        self.assertEqual(await self.aselect(), 1)
        self.assertEqual(self.pool.stats().opened, 1)

    async def test_block_that_ends_before_a_statement(self):
        """The statement's task gets an error; the next socket is watched."""
        self.addCleanup(self.end_sleep)
        async with aconnection() as task_connection:
            task = asyncio.create_task(
                self.execute(task_connection, ENDLESS[connection.vendor])
            )
            while task_connection.connection._readable is None:
                await asyncio.sleep(0)
            # In a task of its own, which has another connection.
            await asyncio.create_task(self.wait_until_executing())
        with self.assertRaisesMessage(OperationalError, "was given back"):
            await asyncio.wait_for(task, PATIENCE)
        for _ in range(3):
            value = await asyncio.wait_for(self.aselect("SELECT SLEEP(0)"), PATIENCE)
            self.assertEqual(value, 0)

    async def test_lastrowid(self):
        async with aconnection() as task_connection:
            async with task_connection.cursor() as cursor:
                await cursor.execute(INSERT, ["a"])
                self.assertEqual(
                    cursor.lastrowid, (await Item.objects.aget(name="a")).pk
                )

    async def test_misclassified_errors(self):
        """As with threads, Django knows better than the driver."""
        async with aconnection() as task_connection:
            with self.assertRaises(IntegrityError):
                await self.execute(
                    task_connection,
                    "INSERT INTO db_pool_item (name) VALUES (%s)",
                    [None],
                )

    async def test_wrong_number_of_parameters(self):
        async with aconnection() as task_connection:
            for params in ([], [1, 2]):
                with self.assertRaises(ProgrammingError):
                    await self.execute(task_connection, "SELECT %s", params)
            self.assertEqual(await self.execute(task_connection, "SELECT 1"), ((1,),))

    async def test_named_parameters(self):
        self.assertEqual(await self.aselect("SELECT %(a)s + 1", {"a": 1}), 2)

    async def test_cursor_that_executed_nothing(self):
        async with aconnection() as task_connection:
            async with task_connection.cursor() as cursor:
                with self.assertRaisesMessage(ProgrammingError, "execute() first"):
                    await cursor.fetchone()
