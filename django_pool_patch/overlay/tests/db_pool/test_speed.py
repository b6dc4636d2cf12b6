"""
What lending costs, counted: functions that are called, locks that are taken.

Times would depend on the machine. These figures are the same on all of them,
and grow when somebody adds to what each statement or request has to do.
"""

import gc
import sys
import threading
from unittest import mock

from django.db import connection
from django.db.pool import ConnectionPool
from django.test import SimpleTestCase

from .test_lending import LendingTestCase
from .utils import FakeConnector


class CountingLock:
    """A lock that counts how often the thread that made it takes it."""

    def __init__(self):
        self.lock = threading.Lock()
        self.thread = threading.get_ident()
        self.count = 0

    def __enter__(self):
        # Housekeeping may take it at any time.
        self.count += threading.get_ident() == self.thread
        return self.lock.__enter__()

    def __exit__(self, *args):
        return self.lock.__exit__(*args)


class SpeedMixin:
    def count(self, pool, function):
        """
        Return how many functions a function calls, those in Python and those
        in C. It must not take the lock of the pool.

        The garbage collector is off meanwhile: the finalizers of whatever
        earlier tests left behind would be counted too.
        """
        counts = {"call": 0, "c_call": 0}

        def profile(frame, event, argument):
            if event in counts:
                counts[event] += 1

        lock = CountingLock()
        previous = sys.getprofile()
        collects = gc.isenabled()
        gc.disable()
        try:
            with mock.patch.object(pool, "_lock", lock):
                sys.setprofile(profile)
                try:
                    function()
                finally:
                    sys.setprofile(previous)
        finally:
            if collects:
                gc.enable()
        self.assertEqual(lock.count, 0)
        # Without the function itself, and without setprofile().
        return counts["call"] - 1, counts["c_call"] - 1


class PoolTests(SpeedMixin, SimpleTestCase):
    def test_checkout(self):
        pool = ConnectionPool(FakeConnector(uses_sockets=True), max_size=2)
        self.addCleanup(pool.close)
        pool.release(pool.acquire())
        python, c = self.count(pool, lambda: pool.release(pool.acquire()))
        # Apart from these two it's is_clean(), which is the connector's.
        self.assertLessEqual(python, 3)
        self.assertLessEqual(python + c, 24)

    def test_lock_is_counted(self):
        """What the other tests rely on."""
        pool = ConnectionPool(FakeConnector(), max_size=2)
        self.addCleanup(pool.close)
        with self.assertRaisesMessage(AssertionError, "1 != 0"):
            self.count(pool, pool.stats)

    def test_collector_is_not_counted(self):
        class Loop:
            def __del__(self):
                pass

        def leave_to_collector():
            loop = Loop()
            loop.itself = loop
            del loop
            # The collector gets its turn in the loop, rather than while a call
            # is being counted.
            nested = []
            for _ in range(100):
                nested = [nested]

        pool = ConnectionPool(FakeConnector(), max_size=2)
        self.addCleanup(pool.close)
        self.addCleanup(gc.set_threshold, *gc.get_threshold())
        gc.set_threshold(10)
        python, _ = self.count(pool, leave_to_collector)
        self.assertEqual(python, 0)
        self.assertIs(gc.isenabled(), True)


class LendingTests(SpeedMixin, LendingTestCase):
    # By driver: functions in Python called for lending and taking back; those
    # called for a statement in transaction mode beyond what it takes in
    # session mode.
    LIMITS = {
        "psycopg": (22, 6),
        "psycopg2": (23, 8),
        "MySQLdb": (22, 6),
        "sqlite3": (29, 7),
        "oracledb": (33, 12),
    }

    def setUp(self):
        super().setUp()
        driver, _, _ = connection.Database.__name__.partition(".")
        self.limit_to_lend, self.limit_of_statement = self.LIMITS[driver]

    def make_warm_wrapper(self, mode):
        wrapper = self.make_wrapper(mode=mode)
        for _ in range(3):
            self.use(wrapper)
        return wrapper

    def test_lending(self):
        for mode in ("session", "transaction"):
            with self.subTest(mode):
                wrapper = self.make_warm_wrapper(mode)

                def lend():
                    wrapper.ensure_connection()
                    wrapper.close_if_unusable_or_obsolete()

                python, _ = self.count(wrapper.connection_pool, lend)
                self.assertLessEqual(python, self.limit_to_lend)

    def test_statement(self):
        counts = {}
        for mode in ("session", "transaction"):
            wrapper = self.make_warm_wrapper(mode)
            # In session mode it's kept from now on.
            self.select(wrapper)
            counts[mode], _ = self.count(
                wrapper.connection_pool, lambda: self.select(wrapper)
            )
            wrapper.close()
        more = counts["transaction"] - counts["session"]
        self.assertLessEqual(more, self.limit_of_statement)
