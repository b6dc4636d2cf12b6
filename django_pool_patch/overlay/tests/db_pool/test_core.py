import gc
import math

from django.db.pool.core import (
    GROWTH_DELAY,
    MAX_CONNECTING,
    Entry,
    Orders,
    PoolCore,
    Waiter,
)
from django.db.pool.exceptions import PoolClosed, PoolFull
from django.db.pool.options import PoolOptions
from django.test import SimpleTestCase

from .simulation import Simulation


class RecordingWaiter(Waiter):
    def notify(self):
        raise AssertionError("The core must not notify; the shell does.")


class CoreTestCase(SimpleTestCase):
    """Rules of the core, one at a time, on a clock that stands still."""

    def make_core(self, **options):
        return PoolCore(PoolOptions(**options), jitter=lambda: 0)

    def connect(self, core, orders, now=0.0, connection=None):
        """Carry out one connect of `orders` and return the new entry."""
        self.assertGreater(orders.connects, 0)
        entry = core.make_entry(connection or object(), core.generation, now)
        entry.idle_since = now
        core.connected(entry, now)
        self.addCleanup(setattr, entry, "connection", None)
        return entry

    def enqueue(self, core, now=0.0):
        waiter = RecordingWaiter()
        core.enqueue(waiter, now)
        return waiter

    def fill(self, core, number, now=0.0):
        """Return `number` entries, all of them in use."""
        entries = []
        for _ in range(number):
            waiter = self.enqueue(core, now)
            entry = self.connect(core, core.settle(now), now)
            core.idle.append(entry)
            core.settle(now)
            self.assertIs(waiter.entry, entry)
            entry.acquired_at = now
            entries.append(entry)
        return entries


class WaitingTests(CoreTestCase):
    def test_served_in_order(self):
        core = self.make_core(max_size=1)
        (entry,) = self.fill(core, 1)
        first, second, third = (self.enqueue(core) for _ in range(3))
        for waiter in (first, second, third):
            core.idle.append(entry)
            orders = core.settle(0)
            self.assertEqual(orders.settled, (waiter,))
            self.assertIs(waiter.entry, entry)

    def test_grant_is_never_idle(self):
        core = self.make_core(max_size=1)
        (entry,) = self.fill(core, 1)
        self.enqueue(core)
        core.idle.append(entry)
        core.settle(0)
        self.assertEqual(len(core.idle), 0)

    def test_contended_before_settling(self):
        core = self.make_core(max_size=1)
        self.fill(core, 1)
        self.assertIs(core.contended, False)
        waiter = self.enqueue(core)
        self.assertIs(core.contended, True)
        core.settle(0)
        self.assertIs(core.contended, True)
        core.withdraw(waiter, 0)
        self.assertIs(core.contended, False)

    def test_withdraw_returns_grant(self):
        core = self.make_core(max_size=1)
        (entry,) = self.fill(core, 1)
        waiter = self.enqueue(core)
        core.idle.append(entry)
        core.settle(0)
        self.assertIs(core.withdraw(waiter, 0), entry)

    def test_withdrawn_waiter_is_not_served(self):
        core = self.make_core(max_size=1)
        (entry,) = self.fill(core, 1)
        first, second = self.enqueue(core), self.enqueue(core)
        self.assertIsNone(core.withdraw(first, 0))
        core.idle.append(entry)
        self.assertEqual(core.settle(0).settled, (second,))
        self.assertIsNone(first.entry)

    def test_back_in_line(self):
        """Whoever was granted something dead doesn't lose its place."""
        core = self.make_core(max_size=3)
        entries = self.fill(core, 3)
        waiters = [self.enqueue(core) for _ in range(4)]
        core.idle.extend(entries)
        core.settle(0)
        again = {}
        for index in (1, 0, 2):
            again[index] = RecordingWaiter()
            core.enqueue_again(again[index], waiters[index], 0)
        self.assertEqual(list(core.waiters), [again[0], again[1], again[2], waiters[3]])

    def test_max_waiting(self):
        core = self.make_core(max_size=1, max_waiting=1)
        self.fill(core, 1)
        self.enqueue(core)
        with self.assertRaisesMessage(PoolFull, "1 waiting already"):
            self.enqueue(core)
        self.assertEqual(core.refused, 1)

    def test_max_waiting_spares_those_served_by_growth(self):
        core = self.make_core(max_size=3, max_waiting=1)
        for _ in range(4):
            self.enqueue(core)
            core.settle(0)
        with self.assertRaises(PoolFull):
            self.enqueue(core)

    def test_closed(self):
        core = self.make_core()
        waiter = self.enqueue(core)
        orders = core.close(0)
        self.assertEqual(orders.settled, (waiter,))
        self.assertIsInstance(waiter.error, PoolClosed)
        with self.assertRaisesMessage(PoolClosed, "The pool of 'default' is closed"):
            self.enqueue(core)

    def test_suspended(self):
        core = self.make_core(max_size=1)
        (entry,) = self.fill(core, 1)
        core.suspend()
        self.assertIs(core.contended, True)
        waiter = self.enqueue(core)
        core.idle.append(entry)
        self.assertEqual(core.settle(0).settled, ())
        self.assertEqual(core.resume(0).settled, (waiter,))
        self.assertIs(core.contended, False)


class ConnectingTests(CoreTestCase):
    def test_in_progress_counts(self):
        core = self.make_core(max_size=2)
        for _ in range(4):
            self.enqueue(core)
        self.assertEqual(core.settle(0).connects, 2)
        self.assertEqual(core.settle(0).connects, 0)
        self.assertEqual(core.size, 2)

    def test_closing_counts(self):
        """A connection exists at the server until it has been closed."""
        core = self.make_core(max_size=1)
        (entry,) = self.fill(core, 1)
        self.enqueue(core)
        orders = core.discard(entry, 0)
        self.assertEqual(orders.closing, (entry,))
        self.assertEqual(orders.connects, 0)
        self.assertEqual(core.closed(0).connects, 1)

    def test_belongs_to_the_pool(self):
        core = self.make_core()
        waiter = self.enqueue(core)
        orders = core.settle(0)
        self.assertIsNone(core.withdraw(waiter, 0))
        entry = self.connect(core, orders)
        core.idle.append(entry)
        core.settle(0)
        self.assertEqual(list(core.idle), [entry])

    def test_spike(self):
        """What waits is served before much is opened in vain."""
        core = self.make_core(max_size=10)
        waiters = [self.enqueue(core) for _ in range(50)]
        orders = core.settle(0)
        self.assertEqual(orders.connects, MAX_CONNECTING)
        entries = [self.connect(core, orders) for _ in range(orders.connects)]
        core.idle.extend(entries)
        # Connecting took long.
        self.assertEqual(core.settle(0.15).connects, MAX_CONNECTING)
        while core.waiters:
            core.idle.append(entries[0])
            core.settle(0.16)
        self.assertTrue(all(waiter.entry is not None for waiter in waiters))
        # The others that were begun arrive, and no more are begun.
        for _ in range(MAX_CONNECTING):
            self.assertEqual(core.settle(0.16).connects, 0)
        self.assertEqual(core.size, 2 * MAX_CONNECTING)

    def test_growth_where_others_may_serve(self):
        """One at a time, until that doesn't seem to do."""
        core = self.make_core(max_size=10)
        (entry,) = self.fill(core, 1)
        waiters = [self.enqueue(core) for _ in range(5)]
        self.assertEqual(core.settle(0).connects, 1)
        self.assertEqual(core.settle(GROWTH_DELAY * 0.9).connects, 0)
        self.assertEqual(core.settle(GROWTH_DELAY).connects, MAX_CONNECTING - 1)
        # Those that were served don't count.
        core.idle.append(entry)
        core.settle(0)
        self.assertIs(waiters[0].entry, entry)

    def test_growth_after_invalidation(self):
        """What will be closed when it's back serves nobody."""
        core = self.make_core(max_size=10)
        self.fill(core, 1)
        for _ in range(5):
            self.enqueue(core)
        self.assertEqual(core.invalidate(0).connects, MAX_CONNECTING)

    def test_min_size(self):
        core = self.make_core(min_size=2)
        self.assertEqual(core.settle(0).connects, 0)
        self.assertEqual(core.start(0).connects, 2)

    def test_failure_reaches_waiters(self):
        core = self.make_core()
        waiters = [self.enqueue(core), self.enqueue(core)]
        self.assertEqual(core.settle(0).connects, 2)
        error = OSError("down")
        self.assertEqual(core.connect_failed(OSError("first"), 0).settled, ())
        self.assertEqual(core.connect_failed(error, 0).settled, tuple(waiters))
        self.assertIs(waiters[0].error, error)

    def test_failure_spares_waiters_that_may_be_served(self):
        core = self.make_core(max_size=2)
        (entry,) = self.fill(core, 1)
        waiter = self.enqueue(core)
        core.settle(0)
        orders = core.connect_failed(OSError(), 0)
        self.assertEqual((orders.settled, orders.connects), ((), 0))
        # Tried again after a while, or at once when it's the only hope.
        self.assertEqual(core.settle(core.retry_at - 0.01).connects, 0)
        self.assertEqual(core.settle(core.retry_at).connects, 1)
        core.connect_failed(OSError(), core.retry_at)
        self.assertEqual(core.discard(entry, core.retry_at - 0.01).connects, 1)
        self.assertIsNone(waiter.error)

    def test_next_caller_tries_at_once(self):
        core = self.make_core()
        self.enqueue(core)
        core.settle(0)
        core.connect_failed(OSError(), 0)
        self.enqueue(core)
        self.assertEqual(core.settle(0).connects, 1)

    def test_backoff_and_giving_up(self):
        core = self.make_core(min_size=1, reconnect_timeout=60)
        now = 0.0
        delays = []
        self.assertEqual(core.start(now).connects, 1)
        while True:
            error = OSError()
            orders = core.connect_failed(error, now)
            if orders.gave_up is not None:
                break
            delays.append(core.retry_at - now)
            now = core.retry_at
            self.assertEqual(core.settle(now).connects, 1)
        self.assertIs(orders.gave_up, error)
        self.assertGreaterEqual(now, 60)
        self.assertEqual(delays[:4], [0.5, 1, 2, 4])
        self.assertEqual(max(delays), delays[-1])
        self.assertEqual(core.settle(now + 1e6).connects, 0)
        self.enqueue(core, now)
        self.assertEqual(core.settle(now).connects, 1)


class ExpiryTests(CoreTestCase):
    def test_generation(self):
        core = self.make_core(max_size=3)
        used, idle = self.fill(core, 2)
        core.idle.append(idle)
        waiter = self.enqueue(core)
        core.withdraw(waiter, 0)
        self.assertEqual(core.invalidate(0).closing, (idle,))
        self.assertIs(core.is_lendable(used, 0), False)
        self.enqueue(core)
        core.idle.append(used)
        orders = core.settle(0)
        self.assertEqual((orders.settled, orders.closing), ((), (used,)))

    def test_connection_begun_before_invalidation(self):
        core = self.make_core()
        self.enqueue(core)
        core.settle(0)
        generation = core.generation
        core.invalidate(0)
        entry = core.make_entry(object(), generation, 0)
        core.connected(entry, 0)
        core.idle.append(entry)
        self.assertEqual(core.settle(0).closing, (entry,))
        entry.connection = None

    def test_lifetime_while_idle(self):
        core = self.make_core(max_lifetime=100)
        (entry,) = self.fill(core, 1)
        core.idle.append(entry)
        self.assertEqual(core.reap(99).closing, ())
        self.assertEqual(core.next_due(99), 100)
        self.assertEqual(core.reap(100).closing, (entry,))

    def test_lifetime_is_spread(self):
        core = PoolCore(PoolOptions(max_lifetime=100), jitter=lambda: 0.5)
        entry = core.make_entry(object(), 0, 0)
        self.assertEqual(entry.expires_at, 95)
        entry.connection = None

    def test_no_lifetime(self):
        core = self.make_core(max_lifetime=None, max_idle=None)
        (entry,) = self.fill(core, 1)
        core.idle.append(entry)
        self.assertEqual(core.next_due(0), math.inf)
        self.assertEqual(core.reap(1e9).closing, ())

    def test_idle_down_to_min_size(self):
        core = self.make_core(min_size=1, max_idle=10)
        entries = self.fill(core, 3)
        core.idle.extend(entries)
        self.assertEqual(core.reap(9).closing, ())
        self.assertEqual(core.reap(10).closing, tuple(entries[:2]))
        self.assertEqual(list(core.idle), entries[2:])

    def test_replacement_of_expired(self):
        core = self.make_core(min_size=1, max_lifetime=10)
        (entry,) = self.fill(core, 1)
        core.idle.append(entry)
        orders = core.reap(10)
        self.assertEqual((orders.closing, orders.connects), ((entry,), 1))

    def test_shrinking(self):
        core = self.make_core(max_size=3)
        first, second, third = self.fill(core, 3)
        core.idle.append(first)
        self.assertEqual(core.resize(0, 1, 0).closing, (first,))
        self.assertIs(core.contended, True)
        core.idle.append(second)
        self.assertEqual(core.settle(0).closing, (second,))
        core.idle.append(third)
        self.assertEqual(core.settle(0).closing, ())
        self.assertIs(core.contended, False)

    def test_distrust(self):
        core = self.make_core()
        (entry,) = self.fill(core, 1)
        core.idle.append(entry)
        core.distrust()
        self.assertEqual(entry.fresh_until, -math.inf)

    def test_leaks_are_reported_once(self):
        core = self.make_core(leak_threshold=5)
        (entry,) = self.fill(core, 1)
        self.assertEqual(core.reap(4.9).leaks, ())
        self.assertEqual(core.reap(5).leaks, (entry,))
        self.assertEqual(core.reap(6).leaks, ())


class LossTests(CoreTestCase):
    def test_dropped_entry_comes_back(self):
        core = self.make_core(max_size=1)
        connection = object()
        self.enqueue(core)
        entry = core.make_entry(connection, 0, 0)
        core.settle(0)
        core.connected(entry, 0)
        entry.acquired_at = 0
        del entry
        self.assertEqual(len(core.inbox), 1)
        orders = core.settle(0)
        (entry,) = orders.lost
        self.assertIs(entry.connection, connection)
        self.assertEqual((core.lost, len(core.entries)), (1, 1))
        # It can be lost again.
        del entry, orders
        self.assertEqual(len(core.settle(0).lost), 1)
        core.settle(0)
        core.inbox.clear()

    def test_returned_by_a_finalizer(self):
        core = self.make_core(max_size=1)
        self.enqueue(core)
        core.settle(0)
        entry = core.make_entry(object(), 0, 0)
        core.connected(entry, 0)
        entry.is_return = True
        core.inbox.append(entry)
        orders = core.settle(0)
        # Whoever has the old one can't do any harm.
        self.assertIsNone(entry.connection)
        (entry,) = orders.returned
        self.assertEqual((orders.lost, core.lost), ((), 0))
        # Only this time.
        del entry, orders
        self.assertEqual(len(core.settle(0).lost), 1)
        core.settle(0)
        core.inbox.clear()

    def test_back_twice(self):
        """
        Of what is collected together, all finalizers are called: that of what
        gives the entry back, and its own.
        """

        def give_back(entry):
            entry.is_return = True
            entry.core.inbox.append(entry)

        finalizers = [give_back, Entry.__del__]
        for first, second in [finalizers, finalizers[::-1]]:
            for settles_between in [True, False]:
                with self.subTest(first=first, settles_between=settles_between):
                    core = self.make_core(max_size=1)
                    self.enqueue(core)
                    core.settle(0)
                    entry = core.make_entry(object(), 0, 0)
                    core.connected(entry, 0)
                    first(entry)
                    orders = Orders()
                    if settles_between:
                        orders.extend(core.settle(0))
                    second(entry)
                    orders.extend(core.settle(0))
                    (back,) = orders.returned + orders.lost
                    self.assertIs(orders.closing, ())
                    core.discard(back, 0)
                    back.connection = None
                    core.closed(0)
                    del back, entry, orders
                    self.assertEqual(len(core.inbox), 0)
                    self.assertEqual((len(core.entries), core.closing), (0, 0))

    def test_dropped_within_a_cycle(self):
        core = self.make_core()
        self.enqueue(core)
        core.settle(0)
        entry = core.make_entry(object(), 0, 0)
        core.connected(entry, 0)
        cycle = [entry]
        cycle.append(cycle)
        del entry, cycle
        self.assertEqual(len(core.inbox), 0)
        gc.collect()
        self.assertEqual(len(core.inbox), 1)
        core.settle(0).lost[0].connection = None

    def test_finalizer_only_appends(self):
        """It may run while the lock is held, so it must not need it."""
        core = self.make_core()
        entry = Entry(object(), core, 1, 0, math.inf)
        names = set(PoolCore.__slots__) - {"inbox"}
        before = {name: getattr(core, name) for name in names}
        del entry
        self.assertEqual(len(core.inbox), 1)
        self.assertEqual(before, {name: getattr(core, name) for name in names})
        core.inbox.pop().connection = None

    def test_interrupted_while_closing(self):
        core = self.make_core(max_size=1)
        self.enqueue(core)
        core.settle(0)
        entry = core.make_entry(object(), 0, 0)
        core.connected(entry, 0)
        orders = core.discard(entry, 0)
        self.assertEqual(core.closing, 1)
        del entry, orders
        (entry,) = core.settle(0).closing
        entry.connection = None
        core.closed(0)
        self.assertEqual(core.closing, 0)


class RandomWalkTests(SimpleTestCase):
    """
    The invariants hold on 100,000 steps at random, and each rule of the
    protocol that a shell could break is noticed to be broken.
    """

    STEPS = 5_000
    SEEDS = range(20)

    def walk(self, simulation_class=Simulation, steps=STEPS, seed=0, **options):
        options = {
            "min_size": seed % 3,
            "max_size": 3 + seed % 4,
            "max_waiting": (0, 4)[seed % 2],
            "max_lifetime": (None, 60)[seed % 2],
            "max_idle": (20, None)[seed % 3 == 0],
            **options,
        }
        simulation = simulation_class(seed, **options)
        simulation.walk(steps)
        simulation.close()
        return simulation

    def test_invariants(self):
        events = {}
        for seed in self.SEEDS:
            with self.subTest(seed=seed):
                simulation = self.walk(seed=seed)
                for event, number in simulation.events.items():
                    events[event] = events.get(event, 0) + number
        # A walk that never gets anywhere proves nothing.
        for event in (
            "fast",
            "waited",
            "timeout",
            "PoolFull",
            "error",
            "lost",
            "returned",
            "closed",
            "connect_error",
            "kill",
            "down",
            "drain",
            "resize",
            "suspend",
        ):
            with self.subTest(event=event):
                self.assertGreater(events.get(event, 0), 0)

    def test_without_lock_free_path(self):
        class LockingCore(PoolCore):
            def __init__(self, options, **kwargs):
                super().__init__(options, lock_always=True, **kwargs)

        class LockingSimulation(Simulation):
            core_class = LockingCore

        for seed in (1, 2):
            with self.subTest(seed=seed):
                simulation = self.walk(LockingSimulation, seed=seed)
                self.assertEqual(simulation.events["fast"], 0)
                self.assertGreater(simulation.events["waited"], 100)

    def assertBreaks(self, simulation_class, message, **options):
        """Assert that a broken shell or core is found out, for that reason."""
        messages = set()
        for seed in self.SEEDS:
            try:
                self.walk(simulation_class, seed=seed, **options)
            except AssertionError as e:
                messages.add(str(e))
                if message == str(e):
                    return
            except Exception as e:
                messages.add(repr(e))
        self.fail("Nothing noticed the broken rule: %s" % messages)

    def test_release_must_append_before_reading(self):
        class Broken(Simulation):
            def do_release(self, entry):
                entry.acquired_at = None
                entry.idle_since = self.now
                contended = self.core.contended
                yield
                self.append(entry)
                if contended:
                    self.settle()

        self.assertBreaks(Broken, "A wakeup was lost.", max_size=1, min_size=0)

    def test_enqueue_must_settle_under_the_same_lock(self):
        class Broken(Simulation):
            def do_enqueue(self, waiter):
                self.execute(self.core.settle(self.now))
                self.core.enqueue(waiter, self.now)

        self.assertBreaks(Broken, "A wakeup was lost.")

    def test_waiter_must_set_contended(self):
        class BrokenCore(PoolCore):
            def _update_contended(self):
                self.contended = self.is_closed

        class Broken(Simulation):
            core_class = BrokenCore

        self.assertBreaks(Broken, "Waiters, but nobody takes the lock.")

    def test_popping_is_owning(self):
        class Broken(Simulation):
            def pop(self):
                # Peeking now and removing later isn't popping.
                if not self.core.idle:
                    return None
                return self.own(self.core.idle[-1])

        self.assertBreaks(Broken, "An entry has two owners.")

    def test_grant_must_be_used_or_given_back(self):
        class Broken(Simulation):
            def do_withdraw(self, waiter):
                self.core.withdraw(waiter, self.now)
                waiter.entry = None
                return None

        self.assertBreaks(Broken, "An entry has two owners.")

    def test_waiters_must_be_served_in_order(self):
        class BrokenCore(PoolCore):
            def _serve(self, now, orders):
                while self.waiters and (entry := self._pop()) is not None:
                    if not self.is_lendable(entry, now):
                        self._retire(entry, orders)
                        continue
                    waiter, _ = self.waiters.popitem(last=True)
                    waiter.entry = entry
                    orders.settled += (waiter,)

        class Broken(Simulation):
            core_class = BrokenCore

        self.assertBreaks(Broken, "A waiter was passed over.")

    def test_connecting_must_count(self):
        class BrokenCore(PoolCore):
            @property
            def room(self):
                return self.max_size - len(self.entries)

        class Broken(Simulation):
            core_class = BrokenCore

        self.assertBreaks(Broken, "max_size was exceeded.")

    def test_settling_must_empty_the_inbox(self):
        class BrokenCore(PoolCore):
            def _empty_inbox(self, orders):
                pass

        class Broken(Simulation):
            core_class = BrokenCore

        self.assertBreaks(Broken, "Lost entries were not taken back.")

    def test_closing_must_retire_what_comes_back(self):
        class BrokenCore(PoolCore):
            def _update_contended(self):
                self.contended = bool(self.waiters) or self.is_suspended

        class Broken(Simulation):
            core_class = BrokenCore

            def close(self):
                borrower = self.client()
                self.parties.append(borrower)
                while not self.owners and self.step():
                    pass
                super().close()

        self.assertBreaks(Broken, "A closed pool keeps connections.")
