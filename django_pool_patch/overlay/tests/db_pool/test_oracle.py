"""
Oracle's connector with python-oracledb's own classes, as far as that goes
without a server: connections and cursors are mocks that have what those
classes have, and nothing else.
"""

import asyncio
import threading
from unittest import mock, skipUnless

from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, connections
from django.db.pool import aconnection, pools
from django.db.utils import ConnectionHandler
from django.test import SimpleTestCase

from .utils import PATIENCE, wait_until

try:
    import oracledb

    from django.db.backends.oracle.base import Database
except (ImportError, ImproperlyConfigured):
    oracledb = Database = None

ALIAS = "oracle"


class Server:
    """Connects like the driver does, to nothing."""

    def __init__(self):
        self.connections = []
        # The text of all statements, but for those of connecting.
        self.statements = []
        # What to do instead of executing.
        self.execute = None
        self.connect = mock.create_autospec(
            oracledb.connect, side_effect=self.make_connection
        )

    def make_connection(self, *args, **kwargs):
        connection = mock.create_autospec(oracledb.Connection, instance=True)
        connection.configure_mock(
            autocommit=False,
            call_timeout=0,
            stmtcachesize=20,
            transaction_in_progress=False,
            version="23.5.0.24.7",
        )
        connection.is_healthy.return_value = True
        connection.cursor.side_effect = lambda *args: self.make_cursor(connection)
        self.connections.append(connection)
        return connection

    def make_cursor(self, connection):
        cursor = mock.create_autospec(oracledb.Cursor, instance=True)
        cursor.connection = connection
        cursor.description = None
        cursor.fetchone.return_value = (1,)
        cursor.fetchall.return_value = [(1,)]
        cursor.fetchmany.side_effect = [[(1,)], []]

        def execute(statement, parameters=None, **keyword_parameters):
            self.statements.append(statement)
            if self.execute is not None and statement.startswith("SELECT 2"):
                self.execute(connection)

        cursor.execute.side_effect = execute
        return cursor


@skipUnless(oracledb, "python-oracledb isn't installed.")
class OracleDriverTests(SimpleTestCase):
    databases = {"default"}

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        # Defined only later, in each test.
        cls.databases = {"default", ALIAS}

    def setUp(self):
        self.server = Server()
        patch = mock.patch.object(Database, "connect", self.server.connect)
        patch.start()
        self.addCleanup(patch.stop)
        handler = ConnectionHandler(
            {
                "default": {
                    "ENGINE": "django.db.backends.oracle",
                    "NAME": "server/service",
                    "USER": "scott",
                    "PASSWORD": "tiger",
                    "POOL": {"max_size": 2, "timeout": PATIENCE},
                }
            }
        )
        connections.settings[ALIAS] = handler.settings["default"]
        self.addCleanup(self.forget_alias)
        self.wrapper = connections[ALIAS]
        self.pool = pools[ALIAS]

    def forget_alias(self):
        connections[ALIAS].close()
        pools.close_pool(self.pool)
        del connections[ALIAS]
        del connections.settings[ALIAS]

    def select(self, sql="SELECT 1 FROM DUAL"):
        with self.wrapper.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchone()

    async def aselect(self, sql="SELECT 1 FROM DUAL"):
        async with aconnection(ALIAS) as connection:
            async with connection.cursor() as cursor:
                await cursor.execute(sql)
                return await cursor.fetchone()

    def test_reuse(self):
        for _ in range(3):
            self.assertEqual(self.select(), (1,))
            self.wrapper.close()
        (connection,) = self.server.connections
        self.assertEqual(self.server.connect.call_count, 1)
        connection.close.assert_not_called()
        connection.rollback.assert_not_called()
        # What the pool's wrapper has learned needn't be asked again.
        self.assertEqual(self.wrapper.oracle_version, (23, 5, 0, 24, 7))

    def test_initialized_once(self):
        self.select()
        self.wrapper.close()
        before = len(self.server.statements)
        self.select()
        self.wrapper.close()
        self.assertEqual(self.server.statements[before:], ["SELECT 1 FROM DUAL"])

    def test_dead_connection_is_replaced(self):
        self.select()
        self.wrapper.close()
        (connection,) = self.server.connections
        connection.is_healthy.return_value = False
        for entry in self.pool._core.all_entries():
            entry.fresh_until = float("-inf")
        with self.assertLogs("django.db.pool", "WARNING") as logs:
            self.assertEqual(self.select(), (1,))
            wait_until(lambda: logs.output)
        self.wrapper.close()
        self.assertEqual(len(self.server.connections), 2)
        wait_until(lambda: connection.close.called)

    def test_transaction_is_rolled_back(self):
        self.select()
        (connection,) = self.server.connections
        connection.transaction_in_progress = True

        def rollback():
            connection.transaction_in_progress = False

        connection.rollback.side_effect = rollback
        self.wrapper.close()
        connection.rollback.assert_called_once_with()
        self.assertEqual(self.pool.stats().idle, 1)

    def test_state_is_restored(self):
        self.select()
        (connection,) = self.server.connections
        before = connection.call_timeout
        connection.call_timeout = before + 1000
        self.wrapper.close()
        self.assertEqual(connection.call_timeout, before)
        self.assertEqual(self.pool.stats().idle, 1)

    def test_touched_session_is_closed(self):
        with self.wrapper.cursor() as cursor:
            cursor.execute("ALTER SESSION SET NLS_SORT = BINARY")
        (connection,) = self.server.connections
        self.wrapper.close()
        wait_until(lambda: connection.close.called)
        self.assertEqual(self.pool.stats().size, 0)

    async def test_tasks_share_the_connections_of_threads(self):
        self.assertEqual(await self.aselect(), (1,))
        self.assertEqual(await asyncio.to_thread(self.select_in_thread), (1,))
        self.assertEqual(
            await asyncio.gather(*(self.aselect() for _ in "1234")), 4 * [(1,)]
        )
        self.assertLessEqual(len(self.server.connections), 2)
        self.assertEqual(self.pool.stats().in_use, 0)

    def select_in_thread(self):
        with connections[ALIAS].cursor() as cursor:
            cursor.execute("SELECT 1 FROM DUAL")
            row = cursor.fetchone()
        connections[ALIAS].close()
        return row

    async def test_transactions_of_tasks(self):
        async with aconnection(ALIAS) as connection:
            async with connection.atomic():
                async with connection.cursor() as cursor:
                    await cursor.execute("SELECT 1 FROM DUAL")
        (connection,) = self.server.connections
        connection.commit.assert_called_once_with()
        self.assertEqual(self.pool.stats().idle, 1)

    async def test_errors_of_tasks(self):
        def fail(connection):
            raise oracledb.DatabaseError("ORA-00942: table or view does not exist")

        self.server.execute = fail
        with self.assertRaisesMessage(DatabaseError, "ORA-00942"):
            await self.aselect("SELECT 2 FROM DUAL")

    async def test_cancelled_statement_is_interrupted(self):
        is_executing, is_interrupted = threading.Event(), threading.Event()

        def wait(connection):
            connection.cancel.side_effect = is_interrupted.set
            is_executing.set()
            if not is_interrupted.wait(PATIENCE):
                raise AssertionError("Nobody has called cancel().")
            raise oracledb.DatabaseError("ORA-01013: user requested cancel")

        self.server.execute = wait
        task = asyncio.create_task(self.aselect("SELECT 2 FROM DUAL"))
        await asyncio.to_thread(is_executing.wait, PATIENCE)
        task.cancel()
        with self.assertRaises(asyncio.CancelledError):
            await task
        (connection,) = self.server.connections
        await asyncio.to_thread(wait_until, lambda: connection.close.called)
        self.assertIs(is_interrupted.is_set(), True)
        # There's room for another one.
        self.assertEqual(await self.aselect(), (1,))
        self.assertEqual(len(self.server.connections), 2)
