import gc
import logging
import threading
import weakref
from unittest import mock

from django.core.exceptions import ImproperlyConfigured
from django.db.pool import ConnectionPool, NullPool, PoolClosed, PoolTimeout, threads
from django.db.utils import OperationalError
from django.test import SimpleTestCase

from .base import BasePoolTests, refuse_connection, skipUnlessPoolSupports
from .utils import PATIENCE, FakeClock, FakeConnector, wait_until


class OwnedLock:
    """A lock that knows whether the thread that asks has it."""

    def __init__(self):
        self._lock = threading.Lock()
        self._owner = None

    def acquire(self, *args, **kwargs):
        is_acquired = self._lock.acquire(*args, **kwargs)
        if is_acquired:
            self._owner = threading.get_ident()
        return is_acquired

    def release(self):
        self._owner = None
        self._lock.release()

    def __enter__(self):
        return self.acquire()

    def __exit__(self, exc_type, exc_value, traceback):
        self.release()

    def is_mine(self):
        return self._owner == threading.get_ident()


class WatchfulConnector(FakeConnector):
    """Note which of its methods are called by a thread that has the lock."""

    pool_lock = None

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.called = set()
        self.called_with_lock = set()

    def note(self, name):
        self.called.add(name)
        if self.pool_lock is not None and self.pool_lock.is_mine():
            self.called_with_lock.add(name)


for _name in ("open", "configure", "check", "is_clean", "reset", "close", "reclaim"):

    def _method(self, *args, _name=_name, **kwargs):
        self.note(_name)
        return getattr(super(WatchfulConnector, self), _name)(*args, **kwargs)

    setattr(WatchfulConnector, _name, _method)


class ConnectionPoolTestsMixin(BasePoolTests):
    """What ConnectionPool and its subclasses promise beyond BasePool."""

    def setUp(self):
        super().setUp()
        # Tests kill connections that were given back the moment before.
        patcher = mock.patch.object(threads, "TRUST_IN_RETURNED", 0)
        patcher.start()
        self.addCleanup(patcher.stop)

    @skipUnlessPoolSupports("reuse")
    def test_just_returned_is_not_looked_at(self):
        pool = self.make_pool_with_clock(self.make_connector(uses_sockets=True))
        with mock.patch.object(threads, "TRUST_IN_RETURNED", 0.001):
            (connection,) = self.lend_and_return(pool, 1)
        connection.tell()
        self.clock.advance(0.0009)
        entry = pool.acquire()
        self.assertIs(entry.connection, connection)
        self.assertEqual(self.connector.checks, 0)
        pool.release(entry)
        self.clock.advance(0.0011)
        entry = pool.acquire()
        self.assertIs(entry.connection, connection)
        self.assertEqual(self.connector.checks, 1)

    @skipUnlessPoolSupports("reuse")
    def test_silence_spares_a_round_trip(self):
        """But not for longer than ping_after, which begins with the return."""
        pool = self.make_pool_with_clock(
            self.make_connector(uses_sockets=True, ping_after=30.0)
        )
        pool.release(pool.acquire())
        self.clock.advance(29.9)
        pool.release(pool.acquire())
        self.clock.advance(29.9)
        pool.release(pool.acquire())
        self.assertEqual(self.connector.checks, 0)
        self.clock.advance(30.1)
        pool.release(pool.acquire())
        self.assertEqual(self.connector.checks, 1)

    # The lock.

    @skipUnlessPoolSupports("reuse")
    def test_nothing_is_called_under_the_lock(self):
        """Neither the connector, nor a hook, nor logging."""
        connector = WatchfulConnector()
        pool = self.make_pool_with_clock(
            connector, max_size=2, leak_threshold=5, reconnect_timeout=1
        )
        connector.pool_lock = pool._lock = OwnedLock()
        pool._changed = threading.Condition(pool._lock)

        class Handler(logging.Handler):
            def emit(self, record):
                connector.note("log %s" % record.levelname)

        logger = logging.getLogger("django.db.pool")
        handler = Handler()
        level = logger.level
        logger.addHandler(handler)
        self.addCleanup(logger.removeHandler, handler)
        self.addCleanup(logger.setLevel, level)
        logger.setLevel(logging.DEBUG)
        with mock.patch.object(
            pool, "reconnect_failed", lambda error: connector.note("reconnect_failed")
        ):
            # A leak that comes back unclean.
            entry = pool.acquire()
            self.clock.advance(6)
            pool.reap()
            entry.connection.is_clean = False
            pool.release(entry)
            # A dead connection.
            self.clock.advance(60)
            connector.kill_all()
            entry = pool.acquire()
            # A lost one.
            pool.acquire()
            entry = None
            gc.collect()
            pool.reap()
            # Nothing to connect to, for too long.
            pool.drain()
            connector.fail_with = refuse_connection
            for _ in range(2):
                with self.assertRaises(OperationalError):
                    pool.acquire()
                self.clock.advance(6)
            connector.fail_with = None
            # One that is waited for in vain.
            entries = self.lend(pool, 2)
            self.clock.advance(1)
            with self.assertRaises(PoolTimeout):
                pool.acquire(timeout=0.01)
            for entry in entries:
                pool.release(entry)
            pool.close()
        self.assertEqual(
            connector.called - {"log WARNING", "log DEBUG"},
            {
                "open",
                "configure",
                "check",
                "is_clean",
                "reset",
                "close",
                "reclaim",
                "reconnect_failed",
            },
        )
        self.assertEqual(connector.called_with_lock, set())

    # Lending.

    @skipUnlessPoolSupports("reuse")
    def test_last_in_first_out(self):
        pool = self.make_pool()
        first, second, third = self.lend(pool, 3)
        last = second.connection
        for entry in (first, third, second):
            pool.release(entry)
        self.assertIs(pool.acquire().connection, last)

    @skipUnlessPoolSupports("reuse")
    def test_few_connections_stay_hot(self):
        pool = self.make_pool()
        self.lend_and_return(pool, 3)
        used = set()
        for _ in range(10):
            with pool.connection() as connection:
                used.add(connection)
        self.assertEqual(len(used), 1)

    def test_timeout_names_the_longest_holders(self):
        pool = self.make_pool_with_clock(max_size=4)
        entries = []
        for _ in range(4):
            entries.append(pool.acquire())
            self.clock.advance(10.0)
        msg = (
            "Raise max_size or shorten transactions. Held longest: 40.00 seconds, "
            "30.00 seconds, 20.00 seconds."
        )
        with self.assertRaisesMessage(PoolTimeout, msg):
            pool.acquire(timeout=0)
        self.assertEqual(len(entries), 4)

    def test_timeout_names_threads_that_are_known(self):
        name = threading.current_thread().name
        msg = "Held longest: 0.00 seconds by thread %r." % name
        # Because it's recorded.
        pool = self.make_pool_with_clock(max_size=1, leak_threshold=5.0)
        entry = pool.acquire()
        with self.assertRaisesMessage(PoolTimeout, msg):
            pool.acquire(timeout=0)
        pool.release(entry)
        # Because the connector knows.
        pool = self.make_pool_with_clock(max_size=1)
        entry = pool.acquire()
        with (
            mock.patch.object(
                self.connector,
                "get_thread_ident",
                side_effect={entry: threading.get_ident()}.get,
            ),
            self.assertRaisesMessage(PoolTimeout, msg),
        ):
            pool.acquire(timeout=0)
        pool.release(entry)

    def test_timeout_tells_of_connecting(self):
        pool = self.make_pool(max_size=1)
        self.connector.block()
        msg = "(max_size=1, 0 in use, 1 connecting, 1 waiting)"
        with self.assertRaisesMessage(PoolTimeout, msg):
            pool.acquire(timeout=0.01)

    def test_max_waiting_leaves_those_alone_whom_growth_will_serve(self):
        pool = self.make_pool(max_size=3, max_waiting=1)
        self.connector.block()
        tasks = self.spawn_waiters(pool, 4)
        with self.assertRaisesMessage(OperationalError, "4 waiting already"):
            pool.acquire()
        self.connector.unblock()
        first = tasks.pop(0)
        self.serve_all(pool, first.result(), tasks)
        stats = pool.stats()
        self.assertEqual((stats.acquired, stats.refused), (4, 1))

    def test_one_connection_is_opened_for_each_who_waits(self):
        pool = self.make_pool()
        self.connector.block()
        tasks = self.spawn_waiters(pool, 2)
        for _ in range(3):
            pool.reap()
        self.assertEqual(pool.stats().connecting, 2)
        self.connector.unblock()
        # Both are kept: what is dropped goes to who is next.
        entries = [task.result() for task in tasks]
        self.assertEqual({entry.connection.serial for entry in entries}, {1, 2})

    @skipUnlessPoolSupports("reuse")
    def test_connections_nobody_waits_for_anymore_are_not_opened(self):
        pool = self.make_pool(max_size=10)
        self.connector.block()
        tasks = self.spawn_waiters(pool, 4, timeout=1)
        for task in tasks:
            with self.assertRaises(PoolTimeout):
                task.result()
        self.connector.unblock()
        wait_until(lambda: not pool.stats().connecting)
        self.assertEqual(self.connector.arrivals, 3)

    # Age.

    def test_lifetimes_are_spread(self):
        pool = self.make_pool_with_clock(max_lifetime=100.0)
        entries = self.lend(pool, 10)
        ages = {entry.expires_at - self.clock.now for entry in entries}
        self.assertGreater(len(ages), 1)
        self.assertGreaterEqual(min(ages), 90.0)
        self.assertLessEqual(max(ages), 100.0)

    @skipUnlessPoolSupports("reuse")
    def test_no_max_lifetime(self):
        pool = self.make_pool_with_clock(max_lifetime=None, max_idle=None, check="off")
        pool.release(pool.acquire())
        self.clock.advance(10_000_000.0)
        self.assertEqual(pool.reap(), float("inf"))
        self.assertEqual(pool.acquire().connection.serial, 1)

    @skipUnlessPoolSupports("reuse")
    def test_check_after_long_idleness(self):
        pool = self.make_pool_with_clock()
        pool.release(pool.acquire())
        self.clock.advance(29.0)
        pool.release(pool.acquire())
        self.assertEqual(self.connector.checks, 0)
        self.clock.advance(31.0)
        pool.release(pool.acquire())
        self.assertEqual(self.connector.checks, 1)
        self.assertEqual(self.connector.opens, 1)

    @skipUnlessPoolSupports("reuse")
    def test_housekeeping(self):
        # By the real clock: nobody calls reap() here.
        pool = self.make_pool(max_idle=0.05)
        self.lend_and_return(pool, 2)
        wait_until(lambda: self.connector.closes == 2)
        self.assertEqual(pool.stats().size, 0)

    @skipUnlessPoolSupports("reuse")
    def test_failed_reset_casts_doubt_on_the_others(self):
        pool = self.make_pool()
        first, second = self.lend(pool, 2)
        pool.release(first)
        self.connector.reset_result = False
        second.connection.is_clean = False
        pool.release(second)
        self.assertEqual(self.connector.checks, 0)
        self.assertEqual(pool.acquire().connection.serial, first.connection.serial)
        self.assertEqual(self.connector.checks, 1)

    # Logging.

    @skipUnlessPoolSupports("reuse")
    def test_dead_connections_are_logged_once(self):
        pool = self.make_pool(self.make_connector(ping_after=0.0))
        self.lend_and_return(pool, 3)
        self.connector.kill_all()
        with self.assertLogs("django.db.pool", logging.WARNING) as cm:
            pool.acquire()
            wait_until(lambda: cm.output)
        self.assertEqual(
            cm.output,
            [
                "WARNING:django.db.pool:Pool 'default': a connection was found dead; "
                "all connections are replaced."
            ],
        )

    @skipUnlessPoolSupports("reuse")
    def test_failed_reset_is_logged(self):
        pool = self.make_pool()
        self.connector.reset_result = OperationalError("password=s3cr3t")
        entry = pool.acquire()
        entry.connection.is_clean = False
        with self.assertLogs("django.db.pool", logging.WARNING) as cm:
            pool.release(entry)
        self.assertEqual(
            cm.output,
            [
                "WARNING:django.db.pool:Pool 'default': a connection was discarded, "
                "for cleaning it raised OperationalError."
            ],
        )

    def test_lost_entry_is_logged(self):
        pool = self.make_pool(max_size=1)
        entry = pool.acquire()
        with self.assertLogs("django.db.pool", logging.WARNING) as cm:
            del entry
            pool.acquire()
        self.assertEqual(
            cm.output,
            [
                "WARNING:django.db.pool:Pool 'default': a connection came back "
                "because its user was gone. Close connections when a thread or task "
                "ends."
            ],
        )

    def test_failing_close_is_no_error(self):
        pool = self.make_pool()
        entry = pool.acquire()
        with mock.patch.object(
            self.connector, "close", side_effect=OperationalError("broken pipe")
        ):
            with self.assertLogs("django.db.pool", logging.DEBUG) as cm:
                pool.discard(entry)
        msg = "Pool 'default': close raised OperationalError."
        self.assertIn("DEBUG:django.db.pool:%s" % msg, cm.output)
        self.assertEqual(pool.stats().size, 0)

    def test_leak_names_the_thread(self):
        pool = self.make_pool_with_clock(leak_threshold=10.0)
        entry = pool.acquire()
        started = threading.Event()
        done = threading.Event()
        borrowed = []

        def borrow():
            borrowed.append(pool.acquire())
            started.set()
            done.wait(PATIENCE)

        thread = threading.Thread(target=borrow, name="a-view")
        thread.start()
        started.wait(PATIENCE)
        pool.release(entry)
        self.clock.advance(10.0)
        with self.assertLogs("django.db.pool", logging.WARNING) as cm:
            pool.reap()
        done.set()
        thread.join(PATIENCE)
        (output,) = cm.output
        self.assertIn("by thread 'a-view'", output)
        self.assertIn("borrowed.append(pool.acquire())", output)
        self.assertNotIn("s3cr3t", output)

    # Failures to connect.

    def test_recovery_needs_no_time(self):
        # The clock stands still, so no delay can end.
        pool = self.make_pool_with_clock()
        self.connector.fail_with = refuse_connection
        for _ in range(5):
            with self.assertRaisesMessage(OperationalError, "Connection refused"):
                pool.acquire()
        self.connector.fail_with = None
        self.assertIsNotNone(pool.acquire().connection)

    def test_reconnecting_serves_those_who_wait(self):
        pool = self.make_pool_with_clock(max_size=2)
        entry = pool.acquire()
        self.connector.fail_with = refuse_connection
        (task,) = self.spawn_waiters(pool, 1)
        wait_until(lambda: pool.stats().connect_errors == 1)
        pool.reap()
        # Not before a while.
        self.assertEqual(self.connector.arrivals, 2)
        self.connector.fail_with = None
        self.clock.advance(0.5)
        pool.reap()
        self.assertEqual(task.result().connection.serial, 2)
        pool.release(entry)

    @skipUnlessPoolSupports("min_size")
    def test_reconnecting_backs_off(self):
        pool = self.make_pool_with_clock(min_size=1)
        self.connector.fail_with = refuse_connection
        pool.open()
        for number, delay in enumerate([0.5, 1.0, 2.0, 4.0, 8.0], start=1):
            wait_until(lambda: pool.stats().connect_errors == number)
            self.clock.advance(delay * 0.74)
            pool.reap()
            self.assertEqual(pool.stats().connecting, 0)
            self.clock.advance(delay * 0.26)
            pool.reap()
        wait_until(lambda: pool.stats().connect_errors == 6)
        self.connector.fail_with = None
        self.clock.advance(30.0)
        pool.reap()
        wait_until(lambda: pool.stats().idle == 1)
        self.assertEqual(self.connector.arrivals, 7)

    @skipUnlessPoolSupports("min_size")
    def test_reconnect_failed(self):
        errors = []

        class Pool(self.pool_class):
            def reconnect_failed(self, error):
                super().reconnect_failed(error)
                errors.append(error)

        connector = self.connector = self.make_connector()
        connector.fail_with = refuse_connection
        clock = FakeClock()
        pool = Pool(connector, clock=clock, min_size=1, reconnect_timeout=60.0)
        self.addCleanup(pool.close, timeout=0)
        with self.assertLogs("django.db.pool", logging.WARNING) as cm:
            pool.open()
            wait_until(lambda: pool.stats().connect_errors == 1)
            self.assertEqual(errors, [])
            clock.advance(60.0)
            pool.reap()
            wait_until(lambda: errors)
        self.assertEqual(
            cm.output,
            [
                "WARNING:django.db.pool:Pool 'default': couldn't connect for 60 "
                "seconds (OperationalError)."
            ],
        )
        self.assertEqual([type(error) for error in errors], [OperationalError])
        # Nothing is tried until somebody asks.
        clock.advance(100_000.0)
        self.assertEqual(pool.reap(), float("inf"))
        self.assertEqual(connector.arrivals, 2)
        connector.fail_with = None
        self.assertIsNotNone(pool.acquire().connection)

    def test_own_error_of_an_error_that_cannot_be_copied(self):
        class StubbornError(OperationalError):
            def __init__(self, code, text):
                super().__init__(text)

        pool = self.make_pool()
        error = StubbornError(7, "no")
        self.connector.fail_with = lambda: error
        with self.assertRaisesMessage(StubbornError, "no"):
            pool.acquire()

    def test_error_keeps_its_cause(self):
        def fail():
            error = OperationalError("wrapped")
            error.__cause__ = ValueError("the driver's")
            return error

        pool = self.make_pool()
        self.connector.fail_with = fail
        with self.assertRaisesMessage(OperationalError, "wrapped") as cm:
            pool.acquire()
        self.assertIsInstance(cm.exception.__cause__, ValueError)

    def test_no_more_threads(self):
        pool = self.make_pool()
        with mock.patch.object(
            threads.threading.Thread, "start", side_effect=RuntimeError
        ):
            entry = pool.acquire()
        self.assertEqual(entry.connection.serial, 1)

    # Lost entries.

    @skipUnlessPoolSupports("reuse")
    def test_garbage_is_collected_before_giving_up(self):
        pool = self.make_pool(max_size=1)
        self.addCleanup(gc.enable)
        # It must not happen by chance before.
        gc.collect()
        thresholds = gc.get_threshold()
        self.addCleanup(gc.set_threshold, *thresholds)
        gc.set_threshold(0)
        cycle = [pool.acquire()]
        cycle.append(cycle)
        del cycle
        with mock.patch.object(threads, "_next_collection", float("-inf")):
            entry = pool.acquire(timeout=0.5)
        self.assertIsNotNone(entry.connection)
        self.assertEqual(pool.stats().timeouts, 0)

    def test_lost_with_its_pool(self):
        """Nothing is left for the garbage collector, whichever goes first."""
        self.addCleanup(gc.enable)
        gc.disable()
        for order in [("pool", "entry"), ("entry", "pool")]:
            for is_closed in [True, False]:
                with self.subTest(order=order, is_closed=is_closed):
                    connector = FakeConnector()
                    pool = self.pool_class(connector)
                    lost = {"pool": pool, "entry": pool.acquire()}
                    gone = [
                        weakref.ref(lost["pool"]),
                        weakref.ref(lost["entry"].connection),
                    ]
                    connector.connections.clear()
                    if is_closed:
                        pool.close(timeout=0)
                    del pool
                    for name in order:
                        del lost[name]
                    wait_until(lambda: not any(ref() for ref in gone))

    def test_lessee_that_is_gone(self):
        pool = self.make_pool(max_size=1)
        entry = pool.acquire()
        serial = entry.connection.serial
        self.connector.gone.append(entry)
        taken = pool.acquire(timeout=PATIENCE)
        self.assertEqual(pool.stats().lost, 1)
        if self.pool_class.supports_reuse:
            self.assertEqual(taken.connection.serial, serial)
        self.assertEqual(self.connector.most_open, 1)

    def test_lessee_that_goes_while_others_wait(self):
        pool = self.make_pool(max_size=1)
        entry = pool.acquire()
        (task,) = self.spawn_waiters(pool, 1)
        self.connector.gone.append(entry)
        pool.reap()
        self.assertIsNotNone(task.result().connection)

    # KeyboardInterrupt, which may come at any point.

    @skipUnlessPoolSupports("reuse")
    def test_interrupted_check(self):
        pool = self.make_pool(self.make_connector(ping_after=0.0), max_size=1)
        pool.release(pool.acquire())
        self.connector.check_errors = [KeyboardInterrupt()]
        with self.assertRaises(KeyboardInterrupt):
            pool.acquire()
        entry = pool.acquire(timeout=PATIENCE)
        self.assertEqual(self.connector.most_open, 1)
        self.assertStatsAddUp(pool)
        pool.release(entry)

    @skipUnlessPoolSupports("reuse")
    def test_interrupted_check_of_a_granted_entry(self):
        pool = self.make_pool(check="ping", max_size=1)
        entry = pool.acquire()
        (task,) = self.spawn_waiters(pool, 1)
        self.connector.check_errors = [KeyboardInterrupt()]
        pool.release(entry)
        with self.assertRaises(KeyboardInterrupt):
            task.result()
        entry = pool.acquire(timeout=PATIENCE)
        self.assertEqual(self.connector.most_open, 1)
        self.assertStatsAddUp(pool)
        pool.release(entry)

    def test_interrupted_wait(self):
        pool = self.make_pool(max_size=1)
        entry = pool.acquire()
        with mock.patch.object(
            threads.ThreadWaiter, "wait", side_effect=KeyboardInterrupt
        ):
            with self.assertRaises(KeyboardInterrupt):
                pool.acquire()
        self.assertNothingWaiting(pool)
        pool.release(entry)
        entry = pool.acquire(timeout=PATIENCE)
        self.assertEqual(pool.stats().in_use, 1)

    def test_interrupted_when_served(self):
        pool = self.make_pool(max_size=1)
        wait = threads.ThreadWaiter.wait

        def wait_and_raise(waiter, seconds):
            self.assertIs(wait(waiter, seconds), True)
            raise KeyboardInterrupt

        with mock.patch.object(threads.ThreadWaiter, "wait", wait_and_raise):
            with self.assertRaises(KeyboardInterrupt):
                pool.acquire(timeout=PATIENCE)
        self.assertEqual(pool.stats().in_use, 0)
        entry = pool.acquire(timeout=PATIENCE)
        self.assertEqual(self.connector.most_open, 1)
        self.assertStatsAddUp(pool)
        pool.release(entry)

    def test_served_at_the_deadline(self):
        pool = self.make_pool(max_size=1)

        def wait_in_vain(waiter, seconds):
            # The grant is there, but its notification came too late.
            wait_until(lambda: waiter.entry is not None)
            return False

        with mock.patch.object(threads.ThreadWaiter, "wait", wait_in_vain):
            entry = pool.acquire()
        self.assertEqual(entry.connection.serial, 1)
        self.assertEqual(pool.stats().timeouts, 0)
        pool.release(entry)

    @skipUnlessPoolSupports("reuse")
    def test_interrupted_release(self):
        pool = self.make_pool(max_size=1)
        entry = pool.acquire()
        self.connector.clean_errors = [KeyboardInterrupt()]
        with self.assertRaises(KeyboardInterrupt):
            pool.release(entry)
        self.assertEqual(pool.stats().in_use, 1)
        # It can be given back, or dropped.
        del entry
        entry = pool.acquire(timeout=PATIENCE)
        self.assertStatsAddUp(pool)
        pool.release(entry)

    def test_interrupted_connecting(self):
        pool = self.make_pool(max_size=1)
        self.connector.fail_with = KeyboardInterrupt
        with self.assertRaises(KeyboardInterrupt):
            pool.acquire(timeout=PATIENCE)
        self.connector.fail_with = None
        self.assertIsNotNone(pool.acquire(timeout=PATIENCE).connection)

    # Steering.

    def test_wait_on_pool_that_is_closed_meanwhile(self):
        if not self.pool_class.supports_min_size:
            self.skipTest("There is nothing to wait for.")
        pool = self.make_pool(min_size=1)
        self.connector.block()
        task = self.spawn(pool.wait, timeout=PATIENCE)
        wait_until(lambda: self.connector.arrivals)
        self.spawn(pool.close, timeout=0).wait()
        self.connector.unblock()
        msg = "The pool of 'default' was closed while waiting for it."
        with self.assertRaisesMessage(PoolClosed, msg):
            task.result()

    def test_resize_validates(self):
        pool = self.make_pool()
        with self.assertRaisesMessage(ImproperlyConfigured, "'max_size' must be"):
            pool.resize(0, 0)
        with self.assertRaisesMessage(ImproperlyConfigured, "Raise 'max_size'"):
            pool.resize(3, 2)
        self.assertEqual(pool.stats().max_size, 10)

    def test_check_when_checks_are_off(self):
        pool = self.make_pool(check="off")
        pool.release(pool.acquire())
        pool.check()
        self.assertEqual(self.connector.checks, 0)

    @skipUnlessPoolSupports("reuse")
    def test_suspended_pool_connects_to_nothing(self):
        pool = self.make_pool()
        (connection,) = self.lend_and_return(pool, 1)
        pool.suspend()
        self.spawn_waiters(pool, 1, timeout=0.5)
        pool.drain()
        self.assertIs(connection.closed, True)
        self.assertEqual(self.connector.arrivals, 1)

    def test_options_that_cannot_be_imported(self):
        msg = (
            "The pool of 'default' can't import 'no_such_module.check': No module "
            "named 'no_such_module'. Install its package, or correct the path."
        )
        for option in ("check", "reset"):
            with self.subTest(option=option):
                with self.assertRaisesMessage(ImproperlyConfigured, msg):
                    self.make_pool(**{option: "no_such_module.check"})

    def test_use_seconds(self):
        pool = self.make_pool_with_clock()
        for seconds in (2.0, 3.0):
            entry = pool.acquire()
            self.clock.advance(seconds)
            pool.release(entry)
        entry = pool.acquire()
        self.clock.advance(4.0)
        pool.discard(entry)
        self.assertEqual(pool.stats().use_seconds, 9.0)


class ConnectionPoolTests(ConnectionPoolTestsMixin, SimpleTestCase):
    pool_class = ConnectionPool

    def test_dotted_paths(self):
        pool = self.make_pool(
            check="db_pool.test_threads.is_alive", reset="db_pool.test_threads.wash"
        )
        entry = pool.acquire()
        connection = entry.connection
        connection.is_clean = False
        pool.release(entry)
        self.assertIs(connection.is_clean, True)
        connection.is_alive = False
        self.assertIsNot(pool.acquire().connection, connection)


class FreeThreadingTests(ConnectionPoolTestsMixin, SimpleTestCase):
    """The same, by the rules for interpreters without a GIL."""

    pool_class = ConnectionPool

    def setUp(self):
        super().setUp()
        patcher = mock.patch.object(threads, "LOCK_ALWAYS", True)
        patcher.start()
        self.addCleanup(patcher.stop)

    def test_lock_is_always_taken(self):
        pool = self.make_pool()
        pool.release(pool.acquire())
        with mock.patch.object(pool, "_wait_for_entry", return_value=None) as slow:
            pool.acquire()
        slow.assert_called_once_with(None)
        with mock.patch.object(pool, "_settle") as settle:
            entry = pool.acquire()
            pool.release(entry)
        settle.assert_called_once_with()


class NullPoolTests(ConnectionPoolTestsMixin, SimpleTestCase):
    pool_class = NullPool

    def test_nothing_is_kept(self):
        pool = self.make_pool()
        for serial in (1, 2, 3):
            with pool.connection() as connection:
                self.assertEqual(connection.serial, serial)
            self.assertIs(connection.closed, True)
            self.assertEqual(pool.stats().size, 0)
        self.assertEqual(pool.stats().reused, 0)

    def test_nothing_is_kept_for_those_who_gave_up(self):
        pool = self.make_pool()
        self.connector.block()
        with self.assertRaises(PoolTimeout):
            pool.acquire(timeout=0.05)
        self.connector.unblock()
        wait_until(lambda: self.connector.closes)
        self.assertEqual(pool.stats().size, 0)

    def test_min_size(self):
        msg = (
            "NullPool keeps no connections open. Remove 'min_size', or use "
            "ConnectionPool."
        )
        with self.assertRaisesMessage(ImproperlyConfigured, msg):
            NullPool(self.make_connector(), min_size=1)

    def test_sessions_are_not_cleaned(self):
        pool = self.make_pool(reset="always")
        entry = pool.acquire()
        entry.connection.is_clean = False
        pool.release(entry)
        self.assertEqual(self.connector.resets, 0)
        self.assertEqual(self.connector.closes, 1)


def is_alive(connection):
    return connection.is_alive


def wash(connection):
    connection.is_clean = True
