import importlib
import logging
import sys
import unittest
from importlib.util import find_spec
from unittest import mock

from db_pool.base import BasePoolTests, refuse_connection
from db_pool.utils import FakeConnection, FakeConnector, wait_until

from django.core.exceptions import ImproperlyConfigured
from django.db import connection
from django.db.pool import PoolTimeout
from django.db.utils import OperationalError
from django.test import SimpleTestCase

if find_spec("django_pool_patch") is None:
    raise unittest.SkipTest("The adapters are the package's.")

has_psycopg_pool = find_spec("psycopg") and find_spec("psycopg_pool")
has_sqlalchemy = find_spec("sqlalchemy")

if has_psycopg_pool:
    from django_pool_patch.contrib.adapters.psycopg_pool import PsycopgPool
else:
    PsycopgPool = None
if has_sqlalchemy:
    from django_pool_patch.contrib.adapters.sqlalchemy import QueuePool
else:
    QueuePool = None

# What psycopg.pq.TransactionStatus calls IDLE and UNKNOWN.
IDLE, UNKNOWN = 0, 4


class FakePsycopgConnection(FakeConnection):
    """What psycopg_pool looks at in a connection."""

    @property
    def pgconn(self):
        return self

    @property
    def transaction_status(self):
        return UNKNOWN if self.closed else IDLE


class FakePsycopgConnector(FakeConnector):
    connection_class = FakePsycopgConnection


@unittest.skipUnless(has_psycopg_pool, "psycopg_pool isn't installed.")
class PsycopgPoolTests(BasePoolTests, SimpleTestCase):
    pool_class = PsycopgPool
    connector_class = FakePsycopgConnector

    def setUp(self):
        super().setUp()
        # Pools are closed here without waiting for their threads, each of
        # which psycopg_pool complains about.
        logger = logging.getLogger("psycopg.pool")
        self.addCleanup(logger.setLevel, logger.level)
        logger.setLevel(logging.CRITICAL)

    def fail_to_connect(self, pool):
        """Time out, and wait until a thread has tried to connect."""
        with self.assertRaises(PoolTimeout):
            pool.acquire(timeout=0.05)
        wait_until(lambda: pool.stats().connect_errors)

    def test_connect_error_is_the_cause_of_the_timeout(self):
        pool = self.make_pool()
        self.connector.fail_with = refuse_connection
        self.fail_to_connect(pool)
        msg = "Connecting failed: OperationalError"
        with self.assertRaisesMessage(PoolTimeout, msg) as cm:
            pool.acquire(timeout=0.05)
        self.assertIs(type(cm.exception.__cause__), OperationalError)

    def test_connections_of_another_driver(self):
        pool = self.make_pool(FakeConnector())
        self.addCleanup(self.connector.close_all)
        self.fail_to_connect(pool)
        with self.assertRaises(PoolTimeout) as cm:
            pool.acquire(timeout=0.05)
        self.assertIsInstance(cm.exception.__cause__, ImproperlyConfigured)
        self.assertIn("of psycopg 3, and the", str(cm.exception.__cause__))
        wait_until(lambda: self.connector.open_now == 0)

    def test_resize(self):
        # As far as it goes.
        pool = self.make_pool(max_size=1)
        entries = [pool.acquire()]
        pool.resize(0, 2)
        entries.append(pool.acquire())
        with self.assertRaisesMessage(PoolTimeout, "(max_size=2, 2 in use"):
            pool.acquire(timeout=0)
        self.assertEqual(len(entries), 2)

    def test_unheeded_options(self):
        msg = "PsycopgPool doesn't heed 'leak_threshold'. Remove it from the pool's"
        with self.assertRaisesMessage(ImproperlyConfigured, msg):
            self.make_pool(leak_threshold=3)


@unittest.skipUnless(has_sqlalchemy, "SQLAlchemy isn't installed.")
class QueuePoolTests(BasePoolTests, SimpleTestCase):
    pool_class = QueuePool

    _callers_connect = "Callers connect by themselves, however long it takes."
    unsupported = {
        "test_connect_failure_while_others_are_in_use": _callers_connect,
        "test_release_serves_those_who_could_not_connect": _callers_connect,
        "test_timeout_while_connecting": _callers_connect,
        "test_spike": _callers_connect,
    }

    def test_drain(self):
        # As far as it goes.
        pool = self.make_pool()
        idle, lent = self.lend(pool, 2)
        old = {idle.connection, lent.connection}
        pool.release(idle)
        pool.drain()
        pool.release(lent)
        self.assertEqual(self.connector.closes, 1)
        entries = self.lend(pool, 2)
        self.assertEqual(self.connector.closes, 2)
        for entry in entries:
            self.assertNotIn(entry.connection, old)

    def test_unheeded_options(self):
        msg = "QueuePool doesn't heed 'min_size'. Remove it from the pool's options"
        with self.assertRaisesMessage(ImproperlyConfigured, msg):
            self.make_pool(min_size=3)


class MissingLibraryTests(SimpleTestCase):
    def assertMissing(self, name, library, msg):
        path = "django_pool_patch.contrib.adapters.%s" % name
        with mock.patch.dict(sys.modules, {library: None}):
            sys.modules.pop(path, None)
            with self.assertRaisesMessage(ImproperlyConfigured, msg):
                importlib.import_module(path)

    def test_psycopg_pool(self):
        msg = "python -m pip install django-pool-patch[adapters,postgresql]"
        self.assertMissing("psycopg_pool", "psycopg_pool", msg)

    def test_sqlalchemy(self):
        msg = "python -m pip install django-pool-patch[adapters]"
        self.assertMissing("sqlalchemy", "sqlalchemy", msg)


class WrapperTestsMixin:
    """A DatabaseWrapper on another pool than Django's."""

    databases = "__all__"
    pool_class = None

    def setUp(self):
        super().setUp()
        self.wrapper = connection.copy()
        self.wrapper.settings_dict["POOL"] = {
            "pool_class": "%s.%s"
            % (self.pool_class.__module__, self.pool_class.__qualname__),
            "max_size": 2,
        }
        if self.wrapper.connection_pool is None:
            self.skipTest("Databases in memory aren't pooled.")
        self.addCleanup(self.wrapper.close_pool)
        self.addCleanup(self.wrapper.close)

    def query(self, wrapper):
        with wrapper.cursor() as cursor:
            cursor.execute("SELECT 1" + wrapper.features.bare_select_suffix)
            self.assertEqual(cursor.fetchone(), (1,))
        return wrapper.connection

    def make_sibling(self):
        # The same settings, so the same pool.
        sibling = self.wrapper.copy()
        self.addCleanup(sibling.close)
        return sibling

    def test_reuse(self):
        pool = self.wrapper.connection_pool
        self.assertIs(type(pool), self.pool_class)
        first = self.query(self.wrapper)
        self.wrapper.close()
        self.assertIsNone(self.wrapper.connection)
        self.assertEqual(pool.stats().in_use, 0)
        sibling = self.make_sibling()
        self.assertIs(sibling.connection_pool, pool)
        self.assertIs(self.query(sibling), first)
        sibling.close()
        stats = pool.stats()
        self.assertEqual((stats.opened, stats.acquired, stats.reused), (1, 2, 1))

    def test_two_at_a_time(self):
        pool = self.wrapper.connection_pool
        sibling = self.make_sibling()
        self.assertIsNot(self.query(self.wrapper), self.query(sibling))
        self.assertEqual(pool.stats().in_use, 2)
        with self.assertRaisesMessage(PoolTimeout, "max_size=2, 2 in use"):
            pool.acquire(timeout=0)

    def test_transactions_do_not_leak(self):
        first = self.query(self.wrapper)
        self.wrapper.set_autocommit(False)
        self.query(self.wrapper)
        self.wrapper.close()
        sibling = self.make_sibling()
        self.assertIs(self.query(sibling), first)
        self.assertIs(sibling.get_autocommit(), True)
        sibling.check_constraints()
        self.assertIs(sibling.in_atomic_block, False)

    def test_broken_connection_is_replaced(self):
        pool = self.wrapper.connection_pool
        first = self.query(self.wrapper)
        # Behind the wrapper's back.
        first.close()
        self.wrapper.errors_occurred = True
        self.wrapper.close()
        self.assertIsNot(self.query(self.wrapper), first)
        self.wrapper.close()
        wait_until(lambda: not pool.stats().connecting)
        self.assertEqual(pool.stats().in_use, 0)

    def test_close_pool(self):
        pool = self.wrapper.connection_pool
        first = self.query(self.wrapper)
        self.wrapper.close()
        self.wrapper.close_pool()
        self.assertEqual(pool.stats().size, 0)
        self.assertIsNot(self.wrapper.connection_pool, pool)
        self.assertIsNot(self.query(self.wrapper), first)


@unittest.skipUnless(has_psycopg_pool, "psycopg_pool isn't installed.")
@unittest.skipUnless(connection.vendor == "postgresql", "PostgreSQL only.")
class PsycopgPoolWrapperTests(WrapperTestsMixin, SimpleTestCase):
    pool_class = PsycopgPool


@unittest.skipUnless(has_sqlalchemy, "SQLAlchemy isn't installed.")
class QueuePoolWrapperTests(WrapperTestsMixin, SimpleTestCase):
    pool_class = QueuePool
