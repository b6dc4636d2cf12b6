"""
The contract of BasePool, as tests that run against any pool.

A pool that can't do something says so by its supports_* attributes, and the
tests of that are skipped.
"""

import gc
import logging
import random
import sys
import time
from functools import wraps

from django.db.pool import PoolClosed, PoolError, PoolFull, PoolStats, PoolTimeout
from django.db.utils import OperationalError

from .utils import PATIENCE, FakeClock, FakeConnector, Task, wait_until


def skipUnlessPoolSupports(*features):
    """Skip a test unless pool_class supports all the named features."""

    def decorator(test):
        @wraps(test)
        def wrapper(self, *args, **kwargs):
            for feature in features:
                if not getattr(self.pool_class, "supports_%s" % feature):
                    self.skipTest(
                        "%s doesn't support %s." % (self.pool_class.__name__, feature)
                    )
            return test(self, *args, **kwargs)

        return wrapper

    return decorator


def refuse_connection():
    return OperationalError("Connection refused (password=s3cr3t).")


class BasePoolTests:
    """
    Mix this into a SimpleTestCase that has a `pool_class`.

    `unsupported` says why, by the tests' names, what no supports_* attribute
    is about can't be expected of that class.
    """

    pool_class = None
    connector_class = FakeConnector
    unsupported = {}

    def setUp(self):
        super().setUp()
        if reason := self.unsupported.get(self._testMethodName):
            self.skipTest(reason)

    def make_connector(self, **kwargs):
        connector = self.connector_class(**kwargs)
        self.addCleanup(connector.close_all)
        return connector

    def make_pool(self, connector=None, **options):
        """Return a pool whose connector is `self.connector`."""
        self.connector = self.make_connector() if connector is None else connector
        pool = self.pool_class(self.connector, **options)
        self.addCleanup(self.close_pool, pool)
        return pool

    def close_pool(self, pool):
        # Nobody shall be left waiting for it.
        self.connector.unblock()
        pool.close(timeout=0)

    def make_pool_with_clock(self, connector=None, **options):
        """Return a pool that goes by `self.clock`."""
        self.clock = FakeClock()
        return self.make_pool(connector, clock=self.clock, **options)

    def spawn(self, function, *args, **kwargs):
        task = Task(function, *args, **kwargs)
        self.addCleanup(task.join, PATIENCE)
        return task

    def spawn_waiters(self, pool, number, timeout=PATIENCE):
        """
        Return threads that wait for an entry, in this order.
        """
        tasks = []
        waiting = pool.stats().waiting
        for i in range(1, number + 1):
            tasks.append(self.spawn(pool.acquire, timeout))
            wait_until(lambda: pool.stats().waiting == waiting + i)
        return tasks

    def lend(self, pool, number):
        """Return so many entries, each with a connection of its own."""
        return [pool.acquire() for _ in range(number)]

    def lend_and_return(self, pool, number):
        """Have so many connections opened and idle, and return them."""
        entries = self.lend(pool, number)
        connections = [entry.connection for entry in entries]
        for entry in entries:
            pool.release(entry)
        return connections

    def serve_all(self, pool, entry, tasks):
        """
        Release an entry, and what the threads get that wait, one by one.
        """
        tasks = list(tasks)
        while True:
            pool.release(entry)
            if not tasks:
                return
            wait_until(lambda: not all(task.is_alive() for task in tasks))
            task = next(task for task in tasks if not task.is_alive())
            tasks.remove(task)
            entry = task.result()

    def assertNothingWaiting(self, pool):
        self.assertEqual(pool.stats().waiting, 0)

    def assertStatsAddUp(self, pool):
        """Fail unless the figures of a quiet pool agree with each other."""
        stats = pool.stats()
        self.assertEqual(stats.size, stats.idle + stats.in_use + stats.connecting)
        self.assertEqual(stats.size - stats.connecting, stats.opened - stats.closed)
        self.assertEqual(stats.size - stats.connecting, self.connector.open_now)
        self.assertEqual(stats.opened, self.connector.opens)
        self.assertEqual(stats.closed, self.connector.closes)
        # Some may have waited for what they then couldn't use.
        self.assertGreaterEqual(sum(stats.wait_counts), stats.acquired)
        self.assertLessEqual(stats.reused, stats.acquired)
        return stats

    # Lending.

    def test_nothing_is_opened_before_the_first_use(self):
        pool = self.make_pool()
        self.assertEqual(self.connector.arrivals, 0)
        self.assertEqual(pool.stats().size, 0)

    def test_acquire_and_release(self):
        pool = self.make_pool()
        entry = pool.acquire()
        self.assertIn(entry.connection, self.connector.connections)
        self.assertEqual(pool.stats().in_use, 1)
        self.assertIsNone(pool.release(entry))
        stats = pool.stats()
        self.assertEqual(stats.in_use, 0)
        self.assertEqual(stats.acquired, 1)

    def test_connections_are_configured(self):
        pool = self.make_pool()
        for _ in range(2):
            entry = pool.acquire()
            self.assertEqual(entry.facts, {"serial": entry.connection.serial})
            self.assertIsNotNone(entry.session)
            self.assertIsNone(entry.lessee)
            pool.release(entry)

    @skipUnlessPoolSupports("reuse")
    def test_reuse(self):
        pool = self.make_pool()
        entry = pool.acquire()
        connection, session = entry.connection, entry.session
        pool.release(entry)
        self.assertEqual(pool.stats().idle, 1)
        entry = pool.acquire()
        self.assertIs(entry.connection, connection)
        # What is known about it stays with it.
        self.assertIs(entry.session, session)
        self.assertEqual(entry.facts, {"serial": connection.serial})
        pool.release(entry)
        self.assertEqual(self.connector.opens, 1)
        self.assertEqual(pool.stats().reused, 1)

    def test_release_by_another_thread(self):
        pool = self.make_pool(max_size=1)
        entry = self.spawn(pool.acquire).result()
        self.spawn(pool.release, entry).result()
        self.assertEqual(pool.stats().in_use, 0)
        self.assertIsNotNone(self.spawn(pool.acquire).result().connection)

    def test_connection(self):
        pool = self.make_pool()
        with pool.connection() as connection:
            self.assertIn(connection, self.connector.connections)
            self.assertEqual(pool.stats().in_use, 1)
        self.assertEqual(pool.stats().in_use, 0)

    def test_connection_is_given_back_on_exception(self):
        pool = self.make_pool()
        with self.assertRaisesMessage(ValueError, "of the block"):
            with pool.connection():
                raise ValueError("of the block")
        self.assertEqual(pool.stats().in_use, 0)

    def test_connection_timeout(self):
        pool = self.make_pool(max_size=1)
        with pool.connection():
            with self.assertRaises(PoolTimeout):
                with pool.connection(timeout=0):
                    self.fail("There can't be a second connection.")

    def test_pool_as_context_manager(self):
        with self.make_pool() as pool:
            with pool.connection():
                self.assertEqual(pool.stats().in_use, 1)
        with self.assertRaises(PoolClosed):
            pool.acquire()
        self.assertEqual(self.connector.open_now, 0)

    # Limits.

    def test_max_size(self):
        pool = self.make_pool(max_size=3)
        entries = self.lend(pool, 3)
        self.assertEqual(len({id(entry.connection) for entry in entries}), 3)
        with self.assertRaises(PoolTimeout):
            pool.acquire(timeout=0.05)
        self.assertEqual(self.connector.arrivals, 3)

    def test_unlimited_size(self):
        pool = self.make_pool(max_size=None)
        entries = self.lend(pool, 25)
        self.assertEqual(len({id(entry.connection) for entry in entries}), 25)
        self.assertEqual(self.connector.open_now, 25)
        self.assertIsNone(pool.stats().max_size)

    def test_timeout(self):
        pool = self.make_pool(max_size=1)
        entry = pool.acquire()
        msg = (
            "Couldn't acquire a connection to 'default' within 0.05 seconds "
            "(max_size=1, 1 in use, 1 waiting). Raise max_size or shorten "
            "transactions."
        )
        with self.assertRaisesMessage(PoolTimeout, msg) as cm:
            pool.acquire(timeout=0.05)
        self.assertIsNone(cm.exception.__cause__)
        self.assertIsInstance(cm.exception, OperationalError)
        stats = pool.stats()
        self.assertEqual(stats.timeouts, 1)
        self.assertEqual(stats.waiting, 0)
        pool.release(entry)
        self.assertEqual(pool.stats().in_use, 0)

    def test_timeout_names_the_pool(self):
        pool = self.make_pool(max_size=2, name="reports")
        entries = self.lend(pool, 2)
        msg = "to 'reports' within 0.01 seconds (max_size=2, 2 in use, 1 waiting)"
        with self.assertRaisesMessage(PoolTimeout, msg):
            pool.acquire(timeout=0.01)
        self.assertEqual(len(entries), 2)

    def test_timeout_counts_those_who_wait(self):
        pool = self.make_pool(max_size=1)
        entry = pool.acquire()
        tasks = self.spawn_waiters(pool, 2)
        with self.assertRaisesMessage(PoolTimeout, "1 in use, 3 waiting"):
            pool.acquire(timeout=0.01)
        self.serve_all(pool, entry, tasks)
        self.assertNothingWaiting(pool)

    def test_timeout_option(self):
        pool = self.make_pool(max_size=1, timeout=0.05)
        entry = pool.acquire(timeout=PATIENCE)
        with self.assertRaisesMessage(PoolTimeout, "within 0.05 seconds"):
            pool.acquire()
        with self.assertRaisesMessage(PoolTimeout, "within 0.01 seconds"):
            pool.acquire(timeout=0.01)
        pool.release(entry)

    def test_no_timeout(self):
        pool = self.make_pool(max_size=1, timeout=None)
        entry = pool.acquire()
        (task,) = self.spawn_waiters(pool, 1, timeout=None)
        pool.release(entry)
        self.assertIsNotNone(task.result().connection)

    def test_timeout_of_zero(self):
        pool = self.make_pool(max_size=1, timeout=2 * PATIENCE)
        entry = pool.acquire()
        started = time.monotonic()
        with self.assertRaisesMessage(PoolTimeout, "within 0.00 seconds"):
            pool.acquire(timeout=0)
        self.assertLess(time.monotonic() - started, PATIENCE)
        pool.release(entry)

    @skipUnlessPoolSupports("reuse")
    def test_timeout_of_zero_takes_what_is_idle(self):
        pool = self.make_pool()
        pool.release(pool.acquire())
        self.assertEqual(pool.acquire(timeout=0).connection.serial, 1)

    @skipUnlessPoolSupports("max_waiting")
    def test_max_waiting(self):
        pool = self.make_pool(max_size=1, max_waiting=2)
        entry = pool.acquire()
        tasks = self.spawn_waiters(pool, 2)
        msg = (
            "Refused to wait for a connection to 'default' (max_size=1, 2 waiting "
            "already, max_waiting=2). Raise max_size or max_waiting, or shorten "
            "transactions."
        )
        with self.assertRaisesMessage(PoolFull, msg):
            pool.acquire(timeout=PATIENCE)
        self.assertEqual(pool.stats().refused, 1)
        self.assertEqual(pool.stats().waiting, 2)
        self.serve_all(pool, entry, tasks)
        # There is room again.
        pool.release(pool.acquire())

    # Waiting.

    def test_waiter_is_served_by_release(self):
        pool = self.make_pool(max_size=1)
        entry = pool.acquire()
        (task,) = self.spawn_waiters(pool, 1)
        pool.release(entry)
        entry = task.result()
        self.assertEqual(pool.stats().in_use, 1)
        self.assertNothingWaiting(pool)
        pool.release(entry)

    def test_waiter_is_served_by_discard(self):
        pool = self.make_pool(max_size=1)
        entry = pool.acquire()
        (task,) = self.spawn_waiters(pool, 1)
        pool.discard(entry)
        self.assertEqual(task.result().connection.serial, 2)
        self.assertEqual(self.connector.most_open, 1)

    @skipUnlessPoolSupports("fifo")
    def test_waiters_are_served_in_order(self):
        pool = self.make_pool(max_size=1)
        entry = pool.acquire()
        served = []

        def use(number):
            with pool.connection():
                served.append(number)

        tasks = []
        for number in range(8):
            tasks.append(self.spawn(use, number))
            wait_until(lambda: pool.stats().waiting == number + 1)
        pool.release(entry)
        for task in tasks:
            task.result()
        self.assertEqual(served, list(range(8)))

    @skipUnlessPoolSupports("fifo")
    def test_nobody_barges(self):
        pool = self.make_pool(max_size=1)
        entry = pool.acquire()
        (task,) = self.spawn_waiters(pool, 1)
        pool.release(entry)
        # It's the waiter's, even if its thread hasn't run yet.
        with self.assertRaises(PoolTimeout):
            pool.acquire(timeout=0)
        self.assertIsNotNone(task.result().connection)

    @skipUnlessPoolSupports("fifo")
    def test_waiter_that_gave_up_is_passed_over(self):
        pool = self.make_pool(max_size=1)
        entry = pool.acquire()
        (impatient,) = self.spawn_waiters(pool, 1, timeout=0.25)
        (patient,) = self.spawn_waiters(pool, 1)
        with self.assertRaises(PoolTimeout):
            impatient.result()
        pool.release(entry)
        self.assertIsNotNone(patient.result().connection)

    # Opening.

    @skipUnlessPoolSupports("min_size", "wait")
    def test_min_size(self):
        pool = self.make_pool(min_size=2)
        self.assertEqual(self.connector.arrivals, 0)
        pool.open()
        pool.wait(timeout=PATIENCE)
        stats = pool.stats()
        self.assertEqual((stats.size, stats.idle, stats.min_size), (2, 2, 2))
        self.assertEqual(self.connector.opens, 2)

    @skipUnlessPoolSupports("min_size", "wait")
    def test_open_and_wait(self):
        pool = self.make_pool(min_size=2)
        pool.open(wait=True, timeout=PATIENCE)
        self.assertEqual(pool.stats().idle, 2)
        # Again, there is nothing to do.
        pool.open(wait=True, timeout=PATIENCE)
        self.assertEqual(self.connector.opens, 2)

    @skipUnlessPoolSupports("min_size")
    def test_first_acquire_opens_min_size(self):
        pool = self.make_pool(min_size=3, max_size=3)
        pool.release(pool.acquire())
        wait_until(lambda: pool.stats().idle == 3)
        self.assertEqual(self.connector.opens, 3)

    @skipUnlessPoolSupports("min_size", "wait")
    def test_wait_timeout(self):
        pool = self.make_pool(min_size=2)
        self.connector.block()
        msg = (
            "The pool of 'default' couldn't open min_size=2 connections within 0.05 "
            "seconds (0 are open). Lower min_size, or see the server's log."
        )
        with self.assertRaisesMessage(PoolTimeout, msg):
            pool.wait(timeout=0.05)
        self.connector.unblock()
        pool.wait(timeout=PATIENCE)
        self.assertEqual(pool.stats().idle, 2)

    @skipUnlessPoolSupports("min_size", "wait")
    def test_wait_timeout_has_the_cause(self):
        pool = self.make_pool(min_size=1)
        self.connector.fail_with = refuse_connection
        pool.open()
        wait_until(lambda: pool.stats().connect_errors)
        with self.assertRaisesMessage(PoolTimeout, "(0 are open)") as cm:
            pool.wait(timeout=0.05)
        self.assertIs(type(cm.exception.__cause__), OperationalError)

    @skipUnlessPoolSupports("wait")
    def test_wait_on_closed_pool(self):
        pool = self.make_pool()
        pool.close()
        with self.assertRaisesMessage(PoolClosed, "The pool of 'default' is closed."):
            pool.wait()

    # Age.

    @skipUnlessPoolSupports("idle_lifetime")
    def test_max_lifetime_while_idle(self):
        pool = self.make_pool_with_clock(max_lifetime=100.0, max_idle=None)
        self.lend_and_return(pool, 4)
        idle = pool.stats().idle
        self.clock.advance(89.9)
        pool.reap()
        self.assertEqual(pool.stats().idle, idle)
        self.clock.advance(10.1)
        pool.reap()
        self.assertEqual(pool.stats().idle, 0)
        self.assertEqual(self.connector.open_now, 0)

    @skipUnlessPoolSupports("idle_lifetime", "min_size", "wait")
    def test_max_lifetime_keeps_min_size(self):
        pool = self.make_pool_with_clock(min_size=2, max_size=2, max_lifetime=100.0)
        pool.wait(timeout=PATIENCE)
        self.clock.advance(100.0)
        pool.reap()
        wait_until(lambda: pool.stats().idle == 2)
        self.assertEqual(self.connector.opens, 4)
        self.assertEqual(self.connector.most_open, 2)

    @skipUnlessPoolSupports("idle_lifetime", "reuse")
    def test_max_lifetime_when_lent(self):
        pool = self.make_pool_with_clock(max_lifetime=100.0)
        pool.release(pool.acquire())
        self.clock.advance(100.0)
        self.assertEqual(pool.acquire().connection.serial, 2)
        self.assertEqual(self.connector.closes, 1)

    @skipUnlessPoolSupports("idle_lifetime")
    def test_max_lifetime_while_in_use(self):
        pool = self.make_pool_with_clock(max_lifetime=100.0)
        entry = pool.acquire()
        self.clock.advance(1000.0)
        pool.reap()
        self.assertIs(entry.connection.closed, False)
        connection = entry.connection
        pool.release(entry)
        pool.reap()
        self.assertIs(connection.closed, True)

    @skipUnlessPoolSupports("idle_lifetime")
    def test_reap_returns_when_something_is_due(self):
        pool = self.make_pool_with_clock(max_lifetime=100.0, max_idle=None)
        self.assertEqual(pool.reap(), float("inf"))
        entry = pool.acquire()
        due = pool.reap()
        self.assertGreaterEqual(due, self.clock.now + 90.0)
        self.assertLessEqual(due, self.clock.now + 100.0)
        pool.release(entry)

    @skipUnlessPoolSupports("max_idle", "reuse", "min_size")
    def test_max_idle(self):
        pool = self.make_pool_with_clock(min_size=1, max_size=4, max_idle=60.0)
        self.lend_and_return(pool, 4)
        self.clock.advance(59.0)
        pool.reap()
        self.assertEqual(pool.stats().idle, 4)
        self.clock.advance(1.0)
        pool.reap()
        self.assertEqual(pool.stats().idle, 1)
        self.clock.advance(1000.0)
        pool.reap()
        self.assertEqual(pool.stats().idle, 1)
        self.assertEqual(self.connector.closes, 3)

    @skipUnlessPoolSupports("max_idle", "reuse")
    def test_max_idle_counts_from_last_use(self):
        pool = self.make_pool_with_clock(max_idle=60.0)
        self.lend_and_return(pool, 2)
        self.clock.advance(40.0)
        with pool.connection() as connection:
            used = connection
        self.clock.advance(40.0)
        pool.reap()
        self.assertEqual(pool.stats().idle, 1)
        self.assertIs(pool.acquire().connection, used)

    # Steering.

    @skipUnlessPoolSupports("drain", "reuse")
    def test_drain_closes_what_is_idle(self):
        pool = self.make_pool()
        connections = self.lend_and_return(pool, 3)
        pool.drain()
        self.assertEqual([connection.closed for connection in connections], [True] * 3)
        self.assertNotIn(pool.acquire().connection, connections)

    @skipUnlessPoolSupports("drain")
    def test_drain_closes_what_is_in_use_when_it_comes_back(self):
        pool = self.make_pool()
        entry = pool.acquire()
        connection = entry.connection
        pool.drain()
        self.assertIs(connection.closed, False)
        pool.release(entry)
        self.assertIsNot(pool.acquire().connection, connection)
        wait_until(lambda: connection.closed)
        self.assertIs(connection.closed, True)

    @skipUnlessPoolSupports("resize")
    def test_resize_up(self):
        pool = self.make_pool(max_size=1)
        entries = self.lend(pool, 1)
        (task,) = self.spawn_waiters(pool, 1)
        pool.resize(0, 3)
        entries += [task.result(), pool.acquire()]
        self.assertEqual(pool.stats().max_size, 3)
        with self.assertRaisesMessage(PoolTimeout, "(max_size=3, 3 in use"):
            pool.acquire(timeout=0.01)
        self.assertEqual(self.connector.open_now, 3)

    @skipUnlessPoolSupports("resize")
    def test_resize_down_while_in_use(self):
        pool = self.make_pool(max_size=3)
        entries = self.lend(pool, 3)
        pool.resize(0, 1)
        self.assertEqual(self.connector.open_now, 3)
        pool.release(entries.pop())
        pool.release(entries.pop())
        self.assertEqual(self.connector.open_now, 1)
        with self.assertRaisesMessage(PoolTimeout, "(max_size=1, 1 in use"):
            pool.acquire(timeout=0.01)
        pool.release(entries.pop())
        self.assertIsNotNone(pool.acquire(timeout=PATIENCE).connection)
        self.assertEqual(self.connector.open_now, 1)

    @skipUnlessPoolSupports("resize", "reuse")
    def test_resize_down_while_idle(self):
        pool = self.make_pool(max_size=3)
        self.lend_and_return(pool, 3)
        pool.resize(0, 2)
        self.assertEqual(pool.stats().idle, 2)
        self.assertEqual(self.connector.open_now, 2)

    @skipUnlessPoolSupports("resize", "min_size")
    def test_resize_min_size(self):
        pool = self.make_pool(max_size=3)
        pool.release(pool.acquire())
        pool.resize(3, 4)
        wait_until(lambda: pool.stats().idle == 3)
        stats = pool.stats()
        self.assertEqual((stats.min_size, stats.max_size), (3, 4))

    @skipUnlessPoolSupports("check", "reuse")
    def test_check(self):
        pool = self.make_pool()
        self.lend_and_return(pool, 3)
        pool.check()
        self.assertEqual(self.connector.checks, 3)
        stats = pool.stats()
        self.assertEqual(stats.idle, 3)
        self.assertEqual((stats.checks, stats.check_failures), (3, 0))

    @skipUnlessPoolSupports("check", "reuse")
    def test_check_replaces_dead_connections(self):
        pool = self.make_pool()
        connections = self.lend_and_return(pool, 3)
        self.connector.kill_all()
        pool.check()
        self.assertGreaterEqual(pool.stats().check_failures, 1)
        entries = self.lend(pool, 3)
        for entry in entries:
            self.assertNotIn(entry.connection, connections)
        self.assertEqual([connection.closed for connection in connections], [True] * 3)

    @skipUnlessPoolSupports("suspend")
    def test_suspend_and_resume(self):
        pool = self.make_pool()
        pool.release(pool.acquire())
        pool.suspend()
        tasks = self.spawn_waiters(pool, 2)
        self.assertEqual(pool.stats().in_use, 0)
        pool.resume()
        entries = [task.result() for task in tasks]
        self.assertEqual(pool.stats().in_use, 2)
        for entry in entries:
            pool.release(entry)

    @skipUnlessPoolSupports("suspend")
    def test_timeout_while_suspended(self):
        pool = self.make_pool()
        pool.suspend()
        msg = "The pool is suspended. Call resume()."
        with self.assertRaisesMessage(PoolTimeout, msg):
            pool.acquire(timeout=0.05)
        self.assertEqual(self.connector.arrivals, 0)
        pool.resume()
        self.assertIsNotNone(pool.acquire().connection)

    @skipUnlessPoolSupports("suspend", "reuse")
    def test_nothing_is_lent_while_suspended(self):
        pool = self.make_pool()
        self.lend_and_return(pool, 2)
        pool.suspend()
        # More than once: those who gave up change nothing.
        for _ in range(2):
            with self.assertRaises(PoolTimeout):
                pool.acquire(timeout=0)
        self.assertEqual(pool.stats().idle, 2)
        pool.resume()
        self.assertIn(pool.acquire(timeout=0).connection.serial, {1, 2})

    @skipUnlessPoolSupports("suspend", "reuse")
    def test_release_while_suspended(self):
        pool = self.make_pool(max_size=1)
        entry = pool.acquire()
        (task,) = self.spawn_waiters(pool, 1)
        pool.suspend()
        pool.release(entry)
        self.assertEqual(pool.stats().waiting, 1)
        self.assertEqual(pool.stats().idle, 1)
        pool.resume()
        self.assertEqual(task.result().connection.serial, 1)

    # Closing.

    def test_close_what_is_idle(self):
        pool = self.make_pool()
        self.lend_and_return(pool, 3)
        self.assertIs(pool.close(), True)
        self.assertEqual(self.connector.open_now, 0)
        # Once more does no harm.
        self.assertIs(pool.close(), True)

    def test_close_what_was_never_used(self):
        pool = self.make_pool()
        self.assertIs(pool.close(), True)
        self.assertEqual(self.connector.arrivals, 0)
        with self.assertRaisesMessage(PoolClosed, "The pool of 'default' is closed."):
            pool.acquire()

    def test_close_while_in_use(self):
        pool = self.make_pool()
        entries = self.lend(pool, 2)
        self.assertIs(pool.close(timeout=0), False)
        self.assertEqual(self.connector.open_now, 2)
        with self.assertRaisesMessage(PoolClosed, "The pool of 'default' is closed."):
            pool.acquire()
        pool.release(entries.pop())
        self.assertEqual(self.connector.open_now, 1)
        pool.discard(entries.pop())
        self.assertEqual(self.connector.open_now, 0)
        self.assertIs(pool.close(timeout=0), True)

    def test_close_waits(self):
        pool = self.make_pool()
        entry = pool.acquire()
        task = self.spawn(pool.close, timeout=PATIENCE)
        self.assertIs(task.is_alive(), True)
        pool.release(entry)
        self.assertIs(task.result(), True)
        self.assertEqual(self.connector.open_now, 0)

    def test_close_fails_those_who_wait(self):
        pool = self.make_pool(max_size=1)
        entry = pool.acquire()
        tasks = self.spawn_waiters(pool, 3)
        pool.close(timeout=0)
        msg = "The pool of 'default' was closed while waiting for a connection."
        for task in tasks:
            with self.assertRaisesMessage(PoolClosed, msg):
                task.result()
        self.assertNothingWaiting(pool)
        pool.release(entry)
        self.assertEqual(self.connector.open_now, 0)

    def test_close_while_connecting(self):
        pool = self.make_pool()
        self.connector.block()
        task = self.spawn(pool.acquire)
        wait_until(lambda: self.connector.arrivals)
        self.spawn(pool.close, timeout=0).wait()
        self.connector.unblock()
        with self.assertRaises(PoolClosed):
            task.result()
        wait_until(lambda: self.connector.opens and not self.connector.open_now)
        self.assertIs(pool.close(timeout=PATIENCE), True)

    # Giving back.

    def test_release_twice(self):
        pool = self.make_pool()
        entry = pool.acquire()
        pool.release(entry)
        msg = (
            "isn't lent by the pool of 'default': it was given back before, or "
            "belongs to another pool. Release each acquired entry once."
        )
        with self.assertRaisesMessage(PoolError, msg):
            pool.release(entry)
        with self.assertRaisesMessage(PoolError, msg):
            pool.discard(entry)
        self.assertEqual(pool.stats().in_use, 0)

    def test_release_to_another_pool(self):
        pool = self.make_pool()
        other = self.make_pool(name="other")
        entry = pool.acquire()
        with self.assertRaisesMessage(PoolError, "isn't lent by the pool of 'other'"):
            other.release(entry)
        with self.assertRaisesMessage(PoolError, "isn't lent by the pool of 'other'"):
            other.discard(entry)
        self.assertEqual(pool.stats().in_use, 1)
        pool.release(entry)
        self.assertEqual(pool.stats().in_use, 0)

    def test_discard(self):
        pool = self.make_pool()
        entry = pool.acquire()
        connection = entry.connection
        pool.discard(entry)
        self.assertIs(connection.closed, True)
        self.assertEqual(pool.stats().in_use, 0)
        self.assertIsNot(pool.acquire().connection, connection)

    def test_discard_twice(self):
        pool = self.make_pool()
        entry = pool.acquire()
        pool.discard(entry)
        with self.assertRaises(PoolError):
            pool.discard(entry)
        self.assertEqual(self.connector.closes, 1)

    @skipUnlessPoolSupports("reuse")
    def test_clean_connections_are_not_reset(self):
        pool = self.make_pool()
        pool.release(pool.acquire())
        self.assertEqual(self.connector.resets, 0)
        self.assertEqual(pool.stats().resets, 0)

    @skipUnlessPoolSupports("reuse")
    def test_reset(self):
        pool = self.make_pool()
        entry = pool.acquire()
        entry.connection.is_clean = False
        pool.release(entry)
        self.assertEqual((self.connector.resets, self.connector.full_resets), (1, 0))
        self.assertEqual(pool.stats().resets, 1)
        entry = pool.acquire()
        self.assertEqual(entry.connection.serial, 1)
        self.assertIs(entry.connection.is_clean, True)

    @skipUnlessPoolSupports("reuse")
    def test_failed_reset(self):
        for result in (False, OperationalError("The connection is closed.")):
            with self.subTest(result=result):
                pool = self.make_pool()
                self.connector.reset_result = result
                entry = pool.acquire()
                connection = entry.connection
                connection.is_clean = False
                pool.release(entry)
                self.assertIs(connection.closed, True)
                self.assertIsNot(pool.acquire().connection, connection)

    @skipUnlessPoolSupports("reuse")
    def test_reset_always(self):
        pool = self.make_pool(reset="always")
        pool.release(pool.acquire())
        self.assertEqual(self.connector.full_resets, 1)
        self.assertEqual(pool.acquire().connection.serial, 1)

    @skipUnlessPoolSupports("reuse")
    def test_reset_rollback(self):
        pool = self.make_pool(reset="rollback")
        pool.release(pool.acquire())
        self.assertEqual((self.connector.rollbacks, self.connector.resets), (1, 0))
        self.assertEqual(pool.acquire().connection.serial, 1)

    @skipUnlessPoolSupports("reuse")
    def test_reset_callable(self):
        reset = []
        pool = self.make_pool(reset=reset.append)
        entry = pool.acquire()
        connection = entry.connection
        pool.release(entry)
        self.assertEqual(reset, [connection])
        self.assertEqual(self.connector.resets, 0)
        self.assertEqual(pool.stats().idle, 1)

    @skipUnlessPoolSupports("reuse")
    def test_reset_callable_that_leaves_something(self):
        """What it doesn't clean is cleaned as if there were no callable."""
        pool = self.make_pool(reset=lambda connection: None)
        entry = pool.acquire()
        entry.connection.is_clean = False
        pool.release(entry)
        self.assertEqual((self.connector.resets, self.connector.full_resets), (1, 0))
        self.assertIs(pool.acquire().connection.is_clean, True)

    # Health.

    @skipUnlessPoolSupports("invalidation", "reuse")
    def test_dead_connection_is_found_by_poll(self):
        # Idle for a moment only, it isn't due to be asked.
        pool = self.make_pool(self.make_connector(uses_sockets=True))
        (connection,) = self.lend_and_return(pool, 1)
        connection.kill()
        entry = pool.acquire()
        self.assertIsNot(entry.connection, connection)
        self.assertIs(connection.closed, True)
        self.assertEqual(pool.stats().check_failures, 1)
        pool.release(entry)

    @skipUnlessPoolSupports("invalidation", "reuse")
    def test_something_to_read_is_not_an_end(self):
        pool = self.make_pool(self.make_connector(uses_sockets=True))
        (connection,) = self.lend_and_return(pool, 1)
        connection.tell()
        self.assertIs(pool.acquire().connection, connection)
        self.assertEqual(self.connector.checks, 1)
        self.assertEqual(pool.stats().check_failures, 0)

    @skipUnlessPoolSupports("invalidation", "reuse")
    def test_no_check_while_fresh(self):
        pool = self.make_pool(self.make_connector(uses_sockets=True))
        for _ in range(3):
            pool.release(pool.acquire())
        self.assertEqual(self.connector.checks, 0)
        self.assertEqual(self.connector.opens, 1)

    @skipUnlessPoolSupports("invalidation", "reuse")
    def test_dead_connection_is_found_by_check(self):
        pool = self.make_pool(self.make_connector(ping_after=0.0))
        (connection,) = self.lend_and_return(pool, 1)
        connection.kill()
        self.assertIsNot(pool.acquire().connection, connection)
        self.assertIs(connection.closed, True)
        self.assertEqual(pool.stats().check_failures, 1)

    @skipUnlessPoolSupports("invalidation", "reuse")
    def test_failing_check_means_dead(self):
        pool = self.make_pool(self.make_connector(ping_after=0.0))
        (connection,) = self.lend_and_return(pool, 1)
        self.connector.check_errors = [OperationalError("gone")]
        self.assertIsNot(pool.acquire().connection, connection)
        self.assertIs(connection.closed, True)

    @skipUnlessPoolSupports("invalidation", "reuse")
    def test_one_dead_connection_speaks_for_all(self):
        pool = self.make_pool(self.make_connector(ping_after=0.0))
        connections = self.lend_and_return(pool, 3)
        self.connector.check_errors = [OperationalError("gone")]
        entries = self.lend(pool, 3)
        for entry in entries:
            self.assertNotIn(entry.connection, connections)
        wait_until(lambda: all(connection.closed for connection in connections))
        self.assertEqual(pool.stats().check_failures, 1)

    @skipUnlessPoolSupports("invalidation", "reuse")
    def test_dead_connections_do_not_delay_those_who_wait(self):
        pool = self.make_pool(self.make_connector(ping_after=0.0), max_size=2)
        self.lend_and_return(pool, 2)
        self.connector.kill_all()
        tasks = [self.spawn(pool.acquire) for _ in range(2)]
        for task in tasks:
            self.assertIs(task.result().connection.is_alive, True)
        self.assertEqual(self.connector.most_open, 2)

    @skipUnlessPoolSupports("reuse")
    def test_check_ping(self):
        pool = self.make_pool(check="ping")
        pool.release(pool.acquire())
        checks = self.connector.checks
        pool.release(pool.acquire())
        self.assertEqual(self.connector.checks, checks + 1)
        self.assertEqual(self.connector.opens, 1)

    @skipUnlessPoolSupports("reuse")
    def test_check_off(self):
        connector = self.make_connector(uses_sockets=True, ping_after=0.0)
        pool = self.make_pool(connector, check="off")
        (connection,) = self.lend_and_return(pool, 1)
        connection.kill()
        self.assertIs(pool.acquire().connection, connection)
        self.assertEqual(self.connector.checks, 0)

    @skipUnlessPoolSupports("invalidation", "reuse")
    def test_check_callable(self):
        # With room for more, psycopg_pool opens one besides the replacement.
        pool = self.make_pool(
            max_size=1, check=lambda connection: connection.serial > 1
        )
        pool.release(pool.acquire())
        self.assertEqual(pool.acquire().connection.serial, 2)
        wait_until(lambda: self.connector.connections[0].closed)
        self.assertEqual(self.connector.checks, 0)

    @skipUnlessPoolSupports("invalidation", "reuse")
    def test_check_callable_that_raises(self):
        """Such as those of psycopg_pool, which return nothing else."""

        def check(connection):
            if connection.serial == 1:
                raise OperationalError("The connection is closed.")

        pool = self.make_pool(check=check)
        pool.release(pool.acquire())
        for _ in range(2):
            entry = pool.acquire()
            self.assertNotEqual(entry.connection.serial, 1)
            pool.release(entry)
        wait_until(lambda: self.connector.connections[0].closed)

    # Failures to connect.

    @skipUnlessPoolSupports("fail_fast")
    def test_connect_failure(self):
        pool = self.make_pool()
        self.connector.fail_with = refuse_connection
        with self.assertRaisesMessage(OperationalError, "Connection refused") as cm:
            pool.acquire(timeout=2 * PATIENCE)
        self.assertNotIsInstance(cm.exception, PoolError)
        stats = pool.stats()
        self.assertEqual(stats.connect_errors, 1)
        self.assertEqual(stats.size, 0)
        self.assertNothingWaiting(pool)

    @skipUnlessPoolSupports("fail_fast")
    def test_connect_failure_reaches_all_who_wait(self):
        pool = self.make_pool(max_size=1)
        self.connector.block()
        tasks = self.spawn_waiters(pool, 5, timeout=2 * PATIENCE)
        self.connector.fail_with = refuse_connection
        self.connector.unblock()
        for task in tasks:
            task.wait()
            self.assertIs(type(task.error), OperationalError)
            self.assertEqual(str(task.error), str(refuse_connection()))
        # An exception that is raised in two threads gets a garbled traceback.
        self.assertEqual(len({id(task.error) for task in tasks}), 5)

    @skipUnlessPoolSupports("fail_fast")
    def test_connect_failure_while_others_are_in_use(self):
        pool = self.make_pool(max_size=2)
        entry = pool.acquire()
        self.connector.fail_with = refuse_connection
        (task,) = self.spawn_waiters(pool, 1)
        wait_until(lambda: pool.stats().connect_errors)
        # It may be about to try again.
        msg = (
            r"\(max_size=2, 1 in use, (1 connecting, )?2 waiting\)\. "
            "Connecting failed: OperationalError"
        )
        with self.assertRaisesRegex(PoolTimeout, msg) as cm:
            pool.acquire(timeout=0.05)
        self.assertIs(type(cm.exception.__cause__), OperationalError)
        pool.release(entry)
        task.wait()

    @skipUnlessPoolSupports("fail_fast", "reuse")
    def test_release_serves_those_who_could_not_connect(self):
        pool = self.make_pool(max_size=2)
        entry = pool.acquire()
        self.connector.fail_with = refuse_connection
        task = self.spawn(pool.acquire)
        wait_until(lambda: pool.stats().connect_errors)
        self.assertEqual(pool.stats().waiting, 1)
        pool.release(entry)
        self.assertEqual(task.result().connection.serial, 1)

    @skipUnlessPoolSupports("fail_fast")
    def test_recovery(self):
        pool = self.make_pool()
        self.connector.fail_with = refuse_connection
        for _ in range(3):
            with self.assertRaises(OperationalError):
                pool.acquire()
        self.connector.fail_with = None
        self.assertIsNotNone(pool.acquire().connection)
        self.assertEqual(pool.stats().connect_errors, 3)

    def test_failing_configure_closes_the_connection(self):
        class Connector(self.connector_class):
            is_failing = True

            def configure(self, entry):
                if self.is_failing:
                    raise OperationalError("configure() failed.")
                super().configure(entry)

        connector = Connector()
        self.addCleanup(connector.close_all)
        pool = self.make_pool(connector)
        with self.assertRaises(OperationalError):
            pool.acquire(timeout=1.0)
        self.assertGreaterEqual(connector.opens, 1)
        if self.pool_class.supports_fail_fast:
            self.assertEqual(connector.open_now, 0)
        else:
            # It may be trying again, in the background.
            wait_until(lambda: connector.open_now == 0)
        connector.is_failing = False
        self.assertIsNotNone(pool.acquire(timeout=PATIENCE).connection)

    # A connect in progress belongs to the pool.

    @skipUnlessPoolSupports("reuse")
    def test_timeout_while_connecting(self):
        pool = self.make_pool(max_size=1)
        self.connector.block()
        with self.assertRaises(PoolTimeout):
            pool.acquire(timeout=0.05)
        wait_until(lambda: self.connector.arrivals)
        stats = pool.stats()
        self.assertEqual((stats.connecting, stats.size), (1, 1))
        self.connector.unblock()
        wait_until(lambda: pool.stats().idle == 1)
        self.assertEqual(pool.acquire().connection.serial, 1)
        self.assertEqual(self.connector.arrivals, 1)

    @skipUnlessPoolSupports("reuse")
    def test_spike(self):
        pool = self.make_pool(max_size=20)
        self.connector.block()

        def use():
            with pool.connection() as connection:
                return connection.serial

        tasks = [self.spawn(use) for _ in range(50)]
        wait_until(lambda: pool.stats().waiting == 50)
        # Others take longer to connect than all these take to be served.
        self.connector.admit(3)
        serials = [task.result() for task in tasks]
        self.assertEqual(len(serials), 50)
        self.connector.unblock()
        wait_until(lambda: not pool.stats().connecting)
        self.assertLessEqual(self.connector.opens, 6)
        self.assertEqual(pool.stats().reused, 50 - len(set(serials)))

    # Lost entries.

    @skipUnlessPoolSupports("reclaim")
    def test_lost_entry_comes_back(self):
        pool = self.make_pool(max_size=1)
        for number in (1, 2, 3):
            entry = pool.acquire(timeout=PATIENCE)
            del entry
            pool.release(pool.acquire(timeout=PATIENCE))
            self.assertEqual(pool.stats().lost, number)
        self.assertEqual(self.connector.most_open, 1)

    @skipUnlessPoolSupports("reclaim")
    def test_lost_entry_in_a_reference_cycle(self):
        pool = self.make_pool(max_size=1)
        cycle = [pool.acquire()]
        cycle.append(cycle)
        del cycle
        gc.collect()
        entry = pool.acquire(timeout=PATIENCE)
        self.assertEqual(pool.stats().lost, 1)
        pool.release(entry)

    @skipUnlessPoolSupports("reclaim", "reuse")
    def test_lost_entry_is_cleaned(self):
        pool = self.make_pool(max_size=1)
        entry = pool.acquire()
        session = entry.session
        entry.connection.is_clean = False
        del entry
        entry = pool.acquire(timeout=PATIENCE)
        self.assertEqual(entry.connection.serial, 1)
        self.assertIs(entry.session, session)
        self.assertIs(entry.connection.is_clean, True)
        self.assertEqual(self.connector.resets, 1)

    @skipUnlessPoolSupports("reclaim")
    def test_lost_entry_serves_those_who_wait(self):
        pool = self.make_pool(max_size=1)
        entries = [pool.acquire()]
        (task,) = self.spawn_waiters(pool, 1)
        entries.clear()
        self.assertIsNotNone(task.result().connection)
        self.assertEqual(self.connector.most_open, 1)

    @skipUnlessPoolSupports("release_later")
    def test_release_later(self):
        pool = self.make_pool(max_size=1)
        for _ in range(3):
            pool.release_later(pool.acquire(timeout=PATIENCE))
        entry = pool.acquire(timeout=PATIENCE)
        stats = pool.stats()
        self.assertEqual((stats.acquired, stats.lost, stats.in_use), (4, 0, 1))
        self.assertEqual(self.connector.most_open, 1)
        pool.release(entry)

    @skipUnlessPoolSupports("release_later")
    def test_release_later_serves_those_who_wait(self):
        pool = self.make_pool(max_size=1)
        entry = pool.acquire()
        (task,) = self.spawn_waiters(pool, 1)
        pool.release_later(entry)
        self.assertIsNotNone(task.result().connection)
        self.assertEqual(self.connector.most_open, 1)

    @skipUnlessPoolSupports("release_later")
    def test_release_later_takes_no_lock(self):
        """Whoever is interrupted by a finalizer may hold it."""
        pool = self.make_pool(max_size=1)
        entry = pool.acquire()
        with pool._lock:
            pool.release_later(entry)
        self.assertIsNotNone(pool.acquire(timeout=PATIENCE).connection)

    @skipUnlessPoolSupports("reclaim")
    def test_lost_entry_of_a_closed_pool(self):
        pool = self.make_pool()
        entry = pool.acquire()
        pool.close(timeout=0)
        del entry
        self.assertIs(pool.close(timeout=PATIENCE), True)
        self.assertEqual(self.connector.open_now, 0)

    # Leaks.

    @skipUnlessPoolSupports("leak_threshold")
    def test_leak_threshold(self):
        pool = self.make_pool_with_clock(leak_threshold=10.0)
        entry = pool.acquire()
        self.clock.advance(9.0)
        with self.assertNoLogs("django.db.pool", logging.WARNING):
            pool.reap()
        self.clock.advance(3.0)
        with self.assertLogs("django.db.pool", logging.WARNING) as cm:
            pool.reap()
        (output,) = cm.output
        self.assertIn("Pool 'default': a connection is in use for 12.00 s", output)
        self.assertIn("by thread 'MainThread'", output)
        self.assertIn("in test_leak_threshold\n    entry = pool.acquire()", output)
        self.assertTrue(output.rstrip().endswith("entry = pool.acquire()"), output)
        # It's reported once.
        self.clock.advance(3.0)
        with self.assertNoLogs("django.db.pool", logging.WARNING):
            pool.reap()
        with self.assertLogs("django.db.pool", logging.WARNING) as cm:
            pool.release(entry)
        (output,) = cm.output
        self.assertIn("reported as a leak came back after 15.00 seconds", output)

    @skipUnlessPoolSupports("leak_threshold")
    def test_leak_that_is_discarded(self):
        pool = self.make_pool_with_clock(leak_threshold=10.0)
        entry = pool.acquire()
        self.clock.advance(10.0)
        with self.assertLogs("django.db.pool", logging.WARNING):
            pool.reap()
        with self.assertLogs("django.db.pool", logging.WARNING) as cm:
            pool.discard(entry)
        self.assertIn("came back after 10.00 seconds", cm.output[0])

    # Forks.

    @skipUnlessPoolSupports("fork")
    def test_after_fork_in_child(self):
        pool = self.make_pool(max_size=2)
        idle, lent = self.lend(pool, 2)
        inherited = {idle.connection, lent.connection}
        pool.release(idle)
        open_before = self.connector.open_now
        pool.after_fork_in_child()
        stats = pool.stats()
        self.assertEqual((stats.size, stats.acquired), (0, 0))
        # Nothing was said to the server.
        self.assertEqual(self.connector.open_now, open_before)
        self.assertIn(
            len(inherited.intersection(self.connector.abandoned)),
            {1, 2} if not self.pool_class.supports_reuse else {2},
        )
        entries = self.lend(pool, 2)
        for entry in entries:
            self.assertNotIn(entry.connection, inherited)
        # What was borrowed in the parent may be given back.
        self.assertIsNone(lent.connection)
        pool.release(lent)
        self.assertEqual(pool.stats().in_use, 2)

    @skipUnlessPoolSupports("fork")
    def test_closed_pool_after_fork_in_child(self):
        pool = self.make_pool()
        pool.release(pool.acquire())
        pool.close()
        pool.after_fork_in_child()
        with self.assertRaises(PoolClosed):
            pool.acquire()

    # What a pool tells.

    def test_stats(self):
        pool = self.make_pool(max_size=2)
        stats = self.assertStatsAddUp(pool)
        self.assertIsInstance(stats, PoolStats)
        self.assertEqual((stats.min_size, stats.max_size), (0, 2))
        first, second = self.lend(pool, 2)
        stats = self.assertStatsAddUp(pool)
        self.assertEqual((stats.size, stats.in_use, stats.acquired), (2, 2, 2))
        with self.assertRaises(PoolTimeout):
            pool.acquire(timeout=0.01)
        (task,) = self.spawn_waiters(pool, 1)
        self.assertEqual(pool.stats().waiting, 1)
        pool.release(first)
        pool.release(task.result())
        pool.discard(second)
        wait_until(lambda: not pool.stats().connecting)
        stats = self.assertStatsAddUp(pool)
        self.assertEqual((stats.in_use, stats.waiting), (0, 0))
        self.assertEqual((stats.acquired, stats.timeouts), (3, 1))
        self.assertEqual(sum(stats.wait_counts), 3)
        self.assertGreater(stats.wait_seconds, 0)
        self.assertGreater(stats.use_seconds, 0)

    @skipUnlessPoolSupports("reuse")
    def test_stats_of_reuse(self):
        pool = self.make_pool()
        for _ in range(10):
            pool.release(pool.acquire())
        stats = self.assertStatsAddUp(pool)
        self.assertEqual((stats.acquired, stats.reused, stats.opened), (10, 9, 1))
        self.assertEqual(sum(stats.wait_counts), 10)
        pool.close()
        stats = self.assertStatsAddUp(pool)
        self.assertEqual((stats.acquired, stats.reused, stats.closed), (10, 9, 1))
        self.assertEqual(stats.size, 0)

    def test_secrets_stay_secret(self):
        pool = self.make_pool(max_size=1)
        with self.assertLogs("django.db.pool", logging.DEBUG) as cm:
            # assertLogs() wants one at least.
            logging.getLogger("django.db.pool").debug("Begin.")
            entry = pool.acquire()
            texts = [repr(pool), str(pool), repr(pool.options), repr(pool.stats())]
            texts.append(repr(entry))
            with self.assertRaises(PoolTimeout) as timeout:
                pool.acquire(timeout=0.01)
            texts.append(str(timeout.exception))
            pool.discard(entry)
            self.connector.fail_with = refuse_connection
            with self.assertRaises(OperationalError) as failure:
                pool.acquire(timeout=0.2)
            if isinstance(failure.exception, PoolTimeout):
                texts.append(str(failure.exception))
            pool.close()
            with self.assertRaises(PoolClosed) as closed:
                pool.acquire()
            texts.append(str(closed.exception))
        for text in texts + cm.output:
            self.assertNotIn(self.connector.password, text)
        self.assertIn(self.pool_class.__name__, repr(pool))

    # All at once.

    def test_stress(self):
        threads, max_size, seconds = 24, 5, 1.5
        pool = self.make_pool(
            self.make_connector(ping_after=0.0),
            max_size=max_size,
            check="ping" if self.pool_class.supports_invalidation else "auto",
        )
        self.addCleanup(sys.setswitchinterval, sys.getswitchinterval())
        sys.setswitchinterval(1e-6)
        connector = self.connector
        ends_at = time.monotonic() + seconds
        loses = self.pool_class.supports_reclaim
        kills = self.pool_class.supports_invalidation

        def use(number):
            choice = random.Random(number)
            served = timeouts = lost = 0
            me = object()
            # Each is served, however slow this machine is.
            while served < 2 or time.monotonic() < ends_at:
                impatience = choice.choice([0, 0.001, PATIENCE, PATIENCE])
                try:
                    entry = pool.acquire(timeout=impatience)
                except PoolTimeout:
                    timeouts += 1
                    continue
                served += 1
                connection = entry.connection
                if connection.owner is not None or connection.closed:
                    raise AssertionError("%r isn't free." % connection)
                connection.owner = me
                if not choice.randrange(4):
                    time.sleep(choice.random() / 1000)
                if not choice.randrange(5):
                    connection.is_clean = False
                if connector.open_now > max_size:
                    raise AssertionError("%d are open." % connector.open_now)
                if connection.owner is not me or connection.closed:
                    raise AssertionError("%r was taken away." % connection)
                connection.owner = None
                fate = choice.randrange(60)
                if fate == 0:
                    pool.discard(entry)
                elif fate == 1 and loses:
                    lost += 1
                elif fate == 2 and kills:
                    connection.kill()
                    pool.release(entry)
                else:
                    pool.release(entry)
                del entry, connection
                if not choice.randrange(10):
                    try:
                        with pool.connection(timeout=PATIENCE):
                            served += 1
                            raise ValueError
                    except ValueError:
                        pass
            return served, timeouts, lost

        tasks = [self.spawn(use, number) for number in range(threads)]
        results = [task.result() for task in tasks]
        served, timeouts, lost = (sum(column) for column in zip(*results))
        sys.setswitchinterval(0.005)
        gc.collect()
        pool.reap()
        wait_until(lambda: not (pool.stats().connecting or pool.stats().in_use))
        stats = self.assertStatsAddUp(pool)
        self.assertLessEqual(connector.most_open, max_size)
        self.assertEqual(stats.waiting, 0)
        self.assertEqual(stats.acquired, served)
        self.assertEqual(stats.timeouts, timeouts)
        self.assertEqual(stats.lost, lost)
        self.assertIs(pool.close(timeout=PATIENCE), True)
        self.assertEqual(connector.open_now, 0)
