import asyncio
import functools
import gc
import itertools
import logging
import os
import random
import signal
import sys
import threading
import time
import warnings
import weakref
from concurrent.futures import Future
from contextlib import contextmanager
from unittest import mock, skipUnless

from django.core.exceptions import ImproperlyConfigured
from django.db.pool import (
    AsyncConnectionPool,
    BasePool,
    ConnectionPool,
    NullPool,
    PoolClosed,
    PoolError,
    PoolFull,
    PoolTimeout,
    threads,
)
from django.db.pool.asyncio import call_in_thread, workers
from django.db.pool.core import PoolCore
from django.db.pool.housekeeping import housekeeper
from django.db.utils import OperationalError
from django.test import SimpleTestCase

from .base import BasePoolTests, refuse_connection
from .test_speed import SpeedMixin
from .utils import PATIENCE, FakeClock, FakeConnector, Task, wait_until


async def until(condition):
    """Let other tasks run until condition() is true; fail if it never is."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError("Waited for %.0f seconds in vain." % PATIENCE)
        await asyncio.sleep(0.001)


def drive(coroutine):
    """Return what a coroutine returns; fail if it waits for anything."""
    try:
        coroutine.send(None)
    except StopIteration as e:
        return e.value
    coroutine.close()
    raise AssertionError("%r waits." % coroutine)


@contextmanager
def take_too_late(loop):
    """
    Have a loop that isn't running be closed after it was found to be open, and
    before it takes what it's to call. Return what it keeps.
    """
    kept = []

    def call_soon(callback, *args):
        loop.close()
        kept.append((callback, args))

    with mock.patch.object(loop, "call_soon_threadsafe", call_soon):
        yield kept


@contextmanager
def take_and_close(loop, future):
    """
    Have a loop that isn't running call what it's to call until a future is
    done, and be closed before whoever told it goes on.
    """
    call_soon_threadsafe = loop.call_soon_threadsafe

    def call_soon(*args):
        call_soon_threadsafe(*args)
        loop.run_until_complete(asyncio.wait([future]))
        loop.close()

    with mock.patch.object(loop, "call_soon_threadsafe", call_soon):
        yield


def is_quiet(pool):
    """Return whether nothing is under way in a ConnectionPool."""
    stats = pool.stats()
    return not (stats.waiting or stats.connecting or pool._core.closing)


class LoopThread:
    """A thread that runs an event loop."""

    def __init__(self):
        started = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._main(started)), daemon=True
        )
        self._thread.start()
        started.wait(PATIENCE)

    async def _main(self, started):
        self._loop = asyncio.get_running_loop()
        self._end = asyncio.Event()
        started.set()
        await self._end.wait()

    def run(self, coroutine):
        """Return what a coroutine returns that is run in the loop."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        return future.result(3 * PATIENCE)

    def stop(self):
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._end.set)
            self._thread.join(PATIENCE)


class GatedConnector(FakeConnector):
    """
    A connector whose check() and reset() wait until the gate is open. Those
    who wait, or are to wait, are `visitors`.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.gate = threading.Event()
        self.visitors = 0

    def _pass_gate(self):
        with self.lock:
            self.visitors += 1
        if not self.gate.wait(PATIENCE):
            raise AssertionError("Nobody opened the gate.")

    def unblock(self):
        self.gate.set()
        super().unblock()

    def check(self, entry):
        self._pass_gate()
        return super().check(entry)

    def reset(self, entry, full=False):
        self._pass_gate()
        return super().reset(entry, full)


# The contract of BasePool.


class BlockingPool(BasePool):
    """An AsyncConnectionPool whose loop runs in another thread."""

    def __init__(self, connector, **options):
        self.loop = LoopThread()
        self.pool = self.make_pool(connector, **options)
        self.inner = self.pool._pool

    def make_pool(self, connector, **options):
        return AsyncConnectionPool(connector, **options)

    def __repr__(self):
        return "<%s of %r>" % (type(self).__name__, self.pool)

    def __enter__(self):
        self.loop.run(self.pool.__aenter__())
        return self

    def __exit__(self, exc_type, exc_value, traceback):
        self.loop.run(self.pool.__aexit__(exc_type, exc_value, traceback))

    @property
    def options(self):
        return self.pool.options

    def wait_for_closing(self):
        """
        Wait for what was to be closed up to now. That is done in threads, but
        the tests are used to it being done at once.
        """
        core = self.inner._core
        with self.inner._lock:
            expected = core.closed_count + core.closing
        if core.closed_count < expected:
            wait_until(lambda: core.closed_count >= expected)

    @contextmanager
    def connection(self, timeout=None):
        block = self.pool.connection(timeout)
        connection = self.loop.run(block.__aenter__())
        try:
            yield connection
        except BaseException as e:
            if not self.loop.run(block.__aexit__(type(e), e, e.__traceback__)):
                raise
        else:
            self.loop.run(block.__aexit__(None, None, None))

    def acquire(self, timeout=None):
        entry = self.loop.run(self.pool.acquire(timeout))
        self.wait_for_closing()
        return entry

    def release(self, entry):
        result = self.loop.run(self.pool.release(entry))
        self.wait_for_closing()
        return result

    def discard(self, entry):
        return self.loop.run(self.pool.discard(entry))

    def open(self, wait=False, timeout=30.0):
        return self.loop.run(self.pool.open(wait, timeout))

    def close(self, timeout=5.0):
        return self.loop.run(self.pool.close(timeout))

    def stats(self):
        return self.pool.stats()

    def drain(self):
        return self.loop.run(self.pool.drain())

    def resize(self, min_size, max_size):
        return self.loop.run(self.pool.resize(min_size, max_size))

    def wait(self, timeout=30.0):
        return self.loop.run(self.pool.wait(timeout))

    def check(self):
        return self.loop.run(self.pool.check())

    def suspend(self):
        return self.loop.run(self.pool.suspend())

    def resume(self):
        return self.loop.run(self.pool.resume())

    # What others call of the pool that it consists of.

    def reap(self):
        return self.inner.reap()

    def after_fork_in_child(self):
        self.inner.after_fork_in_child()


class BlockingNullPool(BlockingPool):
    """The same on a NullPool, which is closed by who made it."""

    supports_reuse = False
    supports_min_size = False

    def make_pool(self, connector, **options):
        return AsyncConnectionPool(pool=NullPool(connector, **options))

    def __exit__(self, exc_type, exc_value, traceback):
        self.close()

    def close(self, timeout=5.0):
        return self.inner.close(timeout)


class ContractTestsMixin(BasePoolTests):
    unsupported = {
        "test_leak_threshold": "The stack is that of a task.",
        "test_lost_entry_is_cleaned": (
            "What a task lost may be in the midst of a query, and is closed."
        ),
    }

    def setUp(self):
        super().setUp()
        # Tests kill connections that were given back the moment before.
        patcher = mock.patch.object(threads, "TRUST_IN_RETURNED", 0)
        patcher.start()
        self.addCleanup(patcher.stop)

    def close_pool(self, pool):
        super().close_pool(pool)
        pool.loop.stop()


class AsyncContractTests(ContractTestsMixin, SimpleTestCase):
    pool_class = BlockingPool


class NullContractTests(ContractTestsMixin, SimpleTestCase):
    pool_class = BlockingNullPool


class AsyncPoolTestCase(SimpleTestCase):
    def make_connector(self, connector_class=FakeConnector, **kwargs):
        connector = connector_class(**kwargs)
        self.addCleanup(connector.close_all)
        return connector

    def make_thread_pool(self, connector=None, pool_class=ConnectionPool, **options):
        """Return a pool whose connector is `self.connector`."""
        self.connector = self.make_connector() if connector is None else connector
        pool = pool_class(self.connector, **options)
        self.addCleanup(pool.close, timeout=0)
        self.addCleanup(self.connector.unblock)
        return pool

    def make_pool(self, connector=None, **options):
        self.connector = self.make_connector() if connector is None else connector
        pool = AsyncConnectionPool(self.connector, **options)
        self.addCleanup(pool._pool.close, timeout=0)
        self.addCleanup(self.connector.unblock)
        return pool

    def make_pool_with_clock(self, connector=None, **options):
        self.clock = FakeClock()
        return self.make_pool(connector, clock=self.clock, **options)

    def spawn(self, function, *args, **kwargs):
        task = Task(function, *args, **kwargs)
        self.addCleanup(task.join, PATIENCE)
        return task

    async def lend(self, pool, number):
        return [await pool.acquire(PATIENCE) for _ in range(number)]

    async def give_back(self, pool, entries):
        for entry in entries:
            await pool.release(entry)

    async def lend_and_return(self, pool, number):
        entries = await self.lend(pool, number)
        connections = [entry.connection for entry in entries]
        await self.give_back(pool, entries)
        return connections

    async def queue(self, pool, number, timeout=PATIENCE):
        """Return tasks that wait for an entry, in this order."""
        waiting = pool.stats().waiting
        tasks = [asyncio.create_task(pool.acquire(timeout)) for _ in range(number)]
        await until(lambda: pool.stats().waiting == waiting + number)
        return tasks

    def assertStatsAddUp(self, pool, connector):
        stats = pool.stats()
        self.assertEqual(stats.size, stats.idle + stats.in_use + stats.connecting)
        self.assertEqual(stats.size - stats.connecting, stats.opened - stats.closed)
        self.assertEqual(stats.size - stats.connecting, connector.open_now)
        self.assertEqual(stats.opened, connector.opens)
        self.assertEqual(stats.closed, connector.closes)
        self.assertGreaterEqual(sum(stats.wait_counts), stats.acquired)
        return stats

    async def assertAllCanBeLent(self, pool, connector):
        """Fail unless max_size connections can be lent, and no more."""
        max_size = pool.stats().max_size
        entries = await self.lend(pool, max_size)
        self.assertEqual(len({id(entry.connection) for entry in entries}), max_size)
        with self.assertRaises(PoolTimeout):
            await pool.acquire(timeout=0)
        self.assertLessEqual(connector.most_open, max_size)
        # Who comes next is served.
        (task,) = await self.queue(pool, 1)
        await pool.release(entries.pop())
        entries.append(await task)
        await self.give_back(pool, entries)
        self.assertEqual(pool.stats().in_use, 0)


# Cancellation.


class Stepper:
    """
    Await a coroutine, and cancel the running task at the n-th point where it
    waits. `points` counts them.

    `moment` is "waiting" (nothing of what it waits for has happened),
    "served" (it has, but the task doesn't know yet), or "both" (it happens
    when the task is cancelled already, but doesn't know yet). proceed() makes
    it happen.
    """

    def __init__(self, coroutine, number, moment, proceed):
        self.coroutine = coroutine
        self.number = number
        self.moment = moment
        self.proceed = proceed
        self.points = 0

    async def run(self):
        return await self

    def __await__(self):
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        iterator = self.coroutine.__await__()
        step = functools.partial(iterator.send, None)
        while True:
            try:
                future = step()
            except StopIteration as e:
                return e.value
            self.points += 1
            if self.points != self.number:
                loop.call_soon(self.proceed)
            elif self.moment == "served" and future is not None:
                # Before the task is told.
                future.add_done_callback(lambda future: task.cancel())
                loop.call_soon(self.proceed)
            else:
                loop.call_soon(self.cancel, task)
            try:
                yield future
            except BaseException as e:
                step = functools.partial(iterator.throw, e)
            else:
                step = functools.partial(iterator.send, None)

    def cancel(self, task):
        task.cancel()
        if self.moment == "both":
            self.proceed()


class Situation:
    """
    What a coroutine meets that is about to be cancelled.

    * use(): the coroutine. If it returns an entry, that's lent.
    * proceed(): make happen what it waits for, if there's something.
    * closes: how many connections may be closed by all that.
    """

    max_size = 2
    options = {}
    closes = 0
    pool_class = ConnectionPool

    def __init__(self, test):
        self.test = test
        self.clock = FakeClock()
        self.connector = test.make_connector(GatedConnector)
        self.pool = AsyncConnectionPool(
            pool=self.pool_class(
                self.connector,
                max_size=self.max_size,
                clock=self.clock,
                **self.options,
            )
        )
        self.held = []

    async def prepare(self):
        pass

    async def lend_all(self):
        self.connector.gate.set()
        self.held = await self.test.lend(self.pool, self.max_size)
        self.connector.gate.clear()

    def use(self):
        return self.pool.acquire()

    def proceed(self):
        self.connector.gate.set()

    def release_one(self):
        if self.held:
            drive(self.pool.release(self.held.pop()))


class Idle(Situation):
    points = 0

    async def prepare(self):
        await self.test.lend_and_return(self.pool, 2)


class InLine(Situation):
    points = 1

    async def prepare(self):
        await self.lend_all()

    def proceed(self):
        self.release_one()


class InLineWithoutTimeout(InLine):
    options = {"timeout": None}


class Connecting(Situation):
    points = 1

    async def prepare(self):
        self.connector.block()

    def proceed(self):
        self.connector.unblock()


class Refused(Situation):
    """Connecting fails when the task is about to be cancelled."""

    points = 1

    async def prepare(self):
        self.connector.block()
        self.connector.fail_with = refuse_connection

    def use(self):
        return self.acquire()

    async def acquire(self):
        try:
            await self.pool.acquire()
        except OperationalError:
            pass

    def proceed(self):
        self.connector.unblock()


class Pinged(Situation):
    options = {"check": "ping"}
    points = 1

    async def prepare(self):
        await self.lend_all()
        while self.held:
            await self.pool.release(self.held.pop())


class PingedDead(Pinged):
    points = 2
    closes = 2

    async def prepare(self):
        await super().prepare()
        self.connector.kill_all()
        # One at a time.
        self.connector.block()

    def proceed(self):
        if self.connector.gate.is_set():
            self.connector.unblock()
        self.connector.gate.set()


class PingedWhenGranted(Situation):
    options = {"check": "ping"}
    points = 2

    async def prepare(self):
        await self.lend_all()

    def proceed(self):
        if len(self.held) == self.max_size:
            self.release_one()
        else:
            self.connector.gate.set()


class DeadWhenGranted(PingedWhenGranted):
    points = 3
    # The dead one, and the other when it comes back.
    closes = 2

    def proceed(self):
        if len(self.held) == self.max_size:
            # One at a time.
            self.connector.block()
            self.connector.kill_all()
            self.release_one()
        elif self.connector.gate.is_set():
            self.connector.unblock()
        else:
            self.connector.gate.set()


class OutdatedWhenGranted(InLine):
    points = 2
    # What was in use before the pool was drained.
    closes = 2

    def proceed(self):
        if len(self.held) == self.max_size:
            # The new one isn't there before it's waited for.
            self.connector.block()
            self.release_one()
            self.pool._pool.drain()
        else:
            self.connector.unblock()


class TimedOut(Situation):
    """What was granted when the time was up is as good."""

    points = 1

    async def prepare(self):
        await self.lend_all()

    def let_time_pass(self):
        for waiter in list(self.pool._pool._core.waiters):
            self.clock.advance(1000)
            waiter.wake()

    def proceed(self):
        if len(self.held) == self.max_size:
            self.let_time_pass()
            self.release_one()


class TimedOutInVain(TimedOut):
    def use(self):
        return self.acquire()

    async def acquire(self):
        try:
            await self.pool.acquire()
        except PoolTimeout:
            pass

    def proceed(self):
        self.let_time_pass()


class Released(Situation):
    points = 0

    async def prepare(self):
        (self.entry,) = await self.test.lend(self.pool, 1)

    def use(self):
        return self.pool.release(self.entry)


class Cleaned(Released):
    points = 1

    async def prepare(self):
        await super().prepare()
        self.entry.connection.is_clean = False


class Discarded(Released):
    points = 1
    closes = 1

    def use(self):
        return self.pool.discard(self.entry)


class Block(PingedWhenGranted):
    """In line, pinged, in the block, cleaned."""

    points = 4

    def use(self):
        return self.work()

    async def work(self):
        async with self.pool.connection() as connection:
            connection.is_clean = False
            self.connector.gate.clear()
            await asyncio.sleep(0)


class NullInLine(InLine):
    pool_class = NullPool

    async def prepare(self):
        await super().prepare()
        self.connector.block()

    def release_one(self):
        # Not by the pool for tasks, which needs a thread for closing.
        if self.held:
            self.pool._pool.release(self.held.pop())

    def proceed(self):
        self.release_one()
        self.connector.unblock()


class NullReleased(Released):
    pool_class = NullPool
    points = 1


class CancellationTests(AsyncPoolTestCase):
    async def step_through(self, situation_class):
        for moment in ("waiting", "served", "both"):
            for number in itertools.count(1):
                with self.subTest(moment=moment, number=number):
                    was_cancelled, points = await self.take_steps(
                        situation_class, moment, number
                    )
                if not was_cancelled:
                    self.assertEqual(points, situation_class.points)
                    self.assertEqual(number, points + 1)
                    break

    async def take_steps(self, situation_class, moment, number):
        situation = situation_class(self)
        pool, connector = situation.pool, situation.connector
        thread_pool = pool._pool
        self.addCleanup(thread_pool.close, timeout=0)
        await situation.prepare()
        stepper = Stepper(situation.use(), number, moment, situation.proceed)
        task = asyncio.create_task(stepper.run())
        await asyncio.wait([task], timeout=PATIENCE)
        self.assertIs(task.done(), True)
        is_due = stepper.points >= number
        # Not swallowed, and nothing else instead.
        self.assertIs(task.cancelled(), is_due)
        if not is_due and (entry := task.result()) is not None:
            situation.held.append(entry)
        connector.unblock()
        connector.fail_with = None
        await self.give_back(pool, situation.held)
        situation.held = entry = None
        # Without the help of finalizers.
        await until(lambda: is_quiet(thread_pool) and not pool.stats().in_use)
        stats = self.assertStatsAddUp(pool, connector)
        self.assertEqual(stats.lost, 0)
        self.assertEqual(len(thread_pool._core.inbox), 0)
        if thread_pool.supports_reuse:
            self.assertLessEqual(stats.closed, situation.closes)
        else:
            self.assertEqual(stats.size, 0)
        self.assertIs(thread_pool._core.contended, False)
        await self.assertAllCanBeLent(pool, connector)
        await until(lambda: is_quiet(thread_pool))
        self.assertStatsAddUp(pool, connector)
        return task.cancelled(), stepper.points

    async def test_idle(self):
        await self.step_through(Idle)

    async def test_in_line(self):
        await self.step_through(InLine)

    async def test_in_line_without_timeout(self):
        await self.step_through(InLineWithoutTimeout)

    async def test_connecting(self):
        await self.step_through(Connecting)

    async def test_refused(self):
        await self.step_through(Refused)

    async def test_pinged(self):
        await self.step_through(Pinged)

    async def test_pinged_dead(self):
        await self.step_through(PingedDead)

    async def test_pinged_when_granted(self):
        await self.step_through(PingedWhenGranted)

    async def test_dead_when_granted(self):
        await self.step_through(DeadWhenGranted)

    async def test_outdated_when_granted(self):
        await self.step_through(OutdatedWhenGranted)

    async def test_timed_out(self):
        await self.step_through(TimedOut)

    async def test_timed_out_in_vain(self):
        await self.step_through(TimedOutInVain)

    async def test_released(self):
        await self.step_through(Released)

    async def test_cleaned(self):
        await self.step_through(Cleaned)

    async def test_discarded(self):
        await self.step_through(Discarded)

    async def test_block(self):
        await self.step_through(Block)

    async def test_null_pool_in_line(self):
        await self.step_through(NullInLine)

    async def test_null_pool_released(self):
        await self.step_through(NullReleased)

    async def test_grant_goes_to_who_is_next(self):
        pool = self.make_pool(max_size=1)
        entry = await pool.acquire()
        first, second, third = await self.queue(pool, 3)
        drive(pool.release(entry))
        # It's the first task's, which doesn't know yet.
        self.assertEqual(pool.stats().waiting, 2)
        first.cancel()
        second.cancel()
        self.assertIs(await third, entry)
        self.assertEqual((first.cancelled(), second.cancelled()), (True, True))
        self.assertEqual(pool.stats().reused, 1)

    async def test_outdated_grant_is_closed(self):
        # By this clock housekeeping has nothing to do.
        pool = self.make_pool_with_clock(max_size=1)
        entry = await pool.acquire()
        connection = entry.connection
        (task,) = await self.queue(pool, 1)
        drive(pool.release(entry))
        pool._pool.drain()
        task.cancel()
        await asyncio.wait([task])
        # Nobody needs to ask for it.
        await until(lambda: connection.closed)
        self.assertEqual(pool.stats().size, 0)

    async def test_grant_of_a_closed_pool_is_closed(self):
        pool = self.make_pool(max_size=1)
        entry = await pool.acquire()
        (task,) = await self.queue(pool, 1)
        drive(pool.release(entry))
        self.assertIs(pool._pool.close(timeout=0), False)
        task.cancel()
        self.assertIs(await pool.close(timeout=PATIENCE), True)
        self.assertIs(task.cancelled(), True)
        self.assertEqual(self.connector.open_now, 0)

    async def test_asyncio_timeout(self):
        pool = self.make_pool(max_size=1)
        entry = await pool.acquire()
        with self.assertRaises(TimeoutError):
            async with asyncio.timeout(0.01):
                await pool.acquire()
        stats = pool.stats()
        # It wasn't the pool's.
        self.assertEqual((stats.waiting, stats.timeouts), (0, 0))
        await pool.release(entry)
        await self.assertAllCanBeLent(pool, self.connector)

    async def test_task_group(self):
        pool = self.make_pool(max_size=2)

        async def use():
            async with pool.connection():
                await asyncio.Event().wait()

        async def fail():
            await until(lambda: pool.stats().waiting == 3)
            raise ValueError("Enough.")

        with self.assertRaises(ExceptionGroup) as cm:
            async with asyncio.TaskGroup() as group:
                for _ in range(5):
                    group.create_task(use())
                group.create_task(fail())
        self.assertEqual([str(e) for e in cm.exception.exceptions], ["Enough."])
        stats = pool.stats()
        self.assertEqual((stats.waiting, stats.in_use), (0, 0))
        await self.assertAllCanBeLent(pool, self.connector)

    async def test_steering(self):
        """What a thread does goes on, but the task doesn't wait for it."""
        pool = self.make_pool(min_size=1)
        self.connector.block()
        for method in (pool.wait, functools.partial(pool.open, True)):
            task = asyncio.create_task(method(0.05))
            await until(lambda: self.connector.arrivals)
            task.cancel()
            with self.assertRaises(asyncio.CancelledError):
                await task
        self.connector.unblock()
        await pool.wait(PATIENCE)
        self.assertEqual(pool.stats().size, 1)

    def test_random_walk(self):
        for options in ({}, {"check": "ping"}, {"timeout": None}):
            with self.subTest(options=options):
                # Debugging remembers where each of thousands of tasks began.
                asyncio.run(self.walk(20261125, 1500, **options), debug=False)

    async def walk(self, seed, cancellations, **options):
        """Cancel so many of the operations of some dozens of tasks."""
        choice = random.Random(seed)
        max_size = 4
        connector = self.make_connector()
        pool = AsyncConnectionPool(connector, max_size=max_size, **options)
        self.addCleanup(pool._pool.close, timeout=0)
        # What is to be cancelled, as long as it is to.
        running = set()
        counts = {"cancelled": 0, "served": 0, "timeouts": 0}
        is_over = False

        async def use():
            timeout = choice.choice([None, None, 0, 0.001, PATIENCE])
            entry = await pool.acquire(timeout)
            counts["served"] += 1
            connection = entry.connection
            if connection.owner is not None or connection.closed:
                raise AssertionError("%r isn't free." % connection)
            if connector.open_now > max_size:
                raise AssertionError("%d are open." % connector.open_now)
            connection.owner = asyncio.current_task()
            try:
                for _ in range(choice.randrange(3)):
                    await asyncio.sleep(0)
                if not choice.randrange(5):
                    connection.is_clean = False
                elif not choice.randrange(30):
                    connection.kill()
            finally:
                if connection.owner is not asyncio.current_task():
                    raise AssertionError("%r was taken away." % connection)
                connection.owner = None
                if choice.randrange(20):
                    await pool.release(entry)
                else:
                    await pool.discard(entry)

        async def work():
            while not is_over:
                task = asyncio.create_task(use())
                running.add(task)
                await asyncio.wait([task])
                running.discard(task)
                if task.cancelled():
                    counts["cancelled"] += 1
                elif isinstance(task.exception(), PoolTimeout):
                    counts["timeouts"] += 1
                else:
                    task.result()

        asked = 0
        tasks = [asyncio.create_task(work()) for _ in range(30)]
        while asked < cancellations:
            for _ in range(choice.randrange(1, 4)):
                await asyncio.sleep(0)
            for task in tasks:
                # An error ends it.
                if task.done():
                    task.result()
            if asked > 10 * counts["served"] + 100:
                # Threads need their time, and some are to get through.
                continue
            candidates = sorted(running, key=id)
            for task in choice.sample(candidates, min(len(candidates), 6)):
                # Once each: a second would hit what the first one caused.
                running.discard(task)
                asked += task.cancel()
        is_over = True
        await asyncio.gather(*tasks)
        # None was swallowed.
        self.assertEqual(counts["cancelled"], asked)
        self.assertGreater(counts["served"], 100)
        await until(lambda: is_quiet(pool._pool) and not pool.stats().in_use)
        stats = self.assertStatsAddUp(pool, connector)
        self.assertEqual((stats.lost, stats.in_use, stats.waiting), (0, 0, 0))
        self.assertEqual(stats.acquired, counts["served"])
        self.assertLessEqual(connector.most_open, max_size)
        await self.assertAllCanBeLent(pool, connector)
        self.assertIs(await pool.close(PATIENCE), True)
        self.assertEqual(connector.open_now, 0)


class OrderTests(AsyncPoolTestCase):
    async def test_a_thousand_tasks(self):
        pool = self.make_pool(max_size=10)
        entries = await self.lend(pool, 10)
        served = []
        in_use = most_in_use = 0

        async def use(number):
            nonlocal in_use, most_in_use
            async with pool.connection(PATIENCE):
                served.append(number)
                in_use += 1
                most_in_use = max(most_in_use, in_use)
                await asyncio.sleep(0)
                in_use -= 1

        # Housekeeping may grant what was just released, and tell its task only
        # after the loop has told the next one.
        with mock.patch.object(housekeeper, "expect", return_value=True):
            tasks = [asyncio.create_task(use(number)) for number in range(1000)]
            await until(lambda: pool.stats().waiting == 1000)
            await self.give_back(pool, entries)
            await asyncio.gather(*tasks)
        self.assertEqual(served, list(range(1000)))
        self.assertEqual(most_in_use, 10)
        self.assertEqual(self.connector.opens, 10)
        self.assertEqual(pool.stats().waiting, 0)

    async def test_many_tasks_at_once(self):
        """From an empty pool, and never above max_size."""
        pool = self.make_pool(max_size=3)

        async def use():
            async with pool.connection(PATIENCE) as connection:
                self.assertIsNone(connection.owner)
                connection.owner = asyncio.current_task()
                await asyncio.sleep(0)
                self.assertIs(connection.owner, asyncio.current_task())
                connection.owner = None

        await asyncio.gather(*[use() for _ in range(200)])
        self.assertLessEqual(self.connector.most_open, 3)
        self.assertEqual(pool.stats().acquired, 200)

    def test_tasks_and_threads_in_one_line(self):
        thread_pool = self.make_thread_pool(max_size=1)
        entry = thread_pool.acquire()
        loops = [LoopThread(), LoopThread()]
        pools = []
        for loop in loops:
            self.addCleanup(loop.stop)
            pools.append(AsyncConnectionPool(pool=thread_pool))
        served = []

        def use(number):
            with thread_pool.connection(PATIENCE):
                served.append(number)

        async def use_in_task(pool, number):
            async with pool.connection(PATIENCE):
                served.append(number)

        tasks = []
        for number in range(12):
            which = number % 3
            if which == 2:
                tasks.append(self.spawn(use, number))
            else:
                coroutine = use_in_task(pools[which], number)
                tasks.append(self.spawn(loops[which].run, coroutine))
            wait_until(lambda: thread_pool.stats().waiting == number + 1)
        thread_pool.release(entry)
        for task in tasks:
            task.result()
        self.assertEqual(served, list(range(12)))
        self.assertEqual(self.connector.opens, 1)

    async def test_hand_over(self):
        pool = self.make_pool(max_size=1)
        entry = await pool.acquire()
        (task,) = await self.queue(pool, 1)
        drive(pool.release(entry))
        self.assertEqual(pool.stats().idle, 0)
        # Neither tasks nor threads get what is another's.
        with self.assertRaises(PoolTimeout):
            await pool.acquire(timeout=0)
        with self.assertRaises(PoolTimeout):
            pool._pool.acquire(timeout=0)
        self.assertIs(task.done(), False)
        self.assertIs(await task, entry)
        await pool.release(entry)
        self.assertEqual(pool.stats().timeouts, 2)

    async def test_dead_grant_does_not_cost_the_place_in_line(self):
        pool = self.make_pool(check="ping", max_size=1)
        entry = await pool.acquire()
        served = []

        async def use(number):
            async with pool.connection(PATIENCE):
                served.append(number)

        tasks = []
        for number in range(3):
            tasks.append(asyncio.create_task(use(number)))
            await until(lambda: pool.stats().waiting == number + 1)
        entry.connection.kill()
        await pool.release(entry)
        await asyncio.gather(*tasks)
        self.assertEqual(served, [0, 1, 2])
        self.assertEqual(self.connector.opens, 2)

    async def test_acquire_and_release_do_not_wait_without_need(self):
        pool = self.make_pool()
        await self.lend_and_return(pool, 1)
        entry = drive(pool.acquire())
        self.assertIs(entry.connection_in_loop, entry.connection)
        self.assertIsNone(drive(pool.release(entry)))
        self.assertIsNone(entry.connection_in_loop)


class LoopTests(AsyncPoolTestCase):
    def abandon_loop(self, *coroutines, condition):
        """
        Run tasks until a condition holds. Return them, and their loop, which
        was closed without them having ended.
        """
        loop = asyncio.new_event_loop()
        # They tell that they were destroyed.
        loop.set_exception_handler(lambda loop, context: None)
        tasks = [loop.create_task(coroutine) for coroutine in coroutines]
        loop.run_until_complete(until(condition))
        loop.close()
        return tasks

    @contextmanager
    def assertNoWarnings(self):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
        self.assertEqual([str(warning.message) for warning in caught], [])

    def assertServesThreads(self, pool, number):
        entries = [pool.acquire(timeout=PATIENCE) for _ in range(number)]
        self.assertEqual(len({id(entry.connection) for entry in entries}), number)
        for entry in entries:
            pool.release(entry)

    def test_closed_with_tasks_in_line(self):
        pool = self.make_thread_pool(max_size=1)
        entry = pool.acquire()
        apool = AsyncConnectionPool(pool=pool)
        with self.assertNoWarnings(), self.assertNoLogs("django.db.pool", "WARNING"):
            tasks = self.abandon_loop(
                *[apool.acquire(PATIENCE) for _ in range(3)],
                condition=lambda: pool.stats().waiting == 3,
            )
            waiter = self.spawn(pool.acquire, PATIENCE)
            wait_until(lambda: pool.stats().waiting == 4)
            pool.release(entry)
            self.assertIs(waiter.result(), entry)
            self.assertEqual(pool.stats().waiting, 0)
            pool.release(entry)
            del tasks
            gc.collect()
        stats = pool.stats()
        self.assertEqual((stats.idle, stats.in_use, stats.lost), (1, 0, 0))
        self.assertServesThreads(pool, 1)

    def test_closed_with_a_thousand_tasks_in_line(self):
        pool = self.make_thread_pool(max_size=1)
        entry = pool.acquire()
        apool = AsyncConnectionPool(pool=pool)
        tasks = self.abandon_loop(
            *[apool.acquire(PATIENCE) for _ in range(1000)],
            condition=lambda: pool.stats().waiting == 1000,
        )
        pool.release(entry)
        self.assertEqual(len(tasks), 1000)
        stats = pool.stats()
        self.assertEqual((stats.idle, stats.waiting, stats.in_use), (1, 0, 0))

    def test_closed_with_tasks_in_line_for_a_closing_pool(self):
        pool = self.make_thread_pool(max_size=1)
        entry = pool.acquire()
        apool = AsyncConnectionPool(pool=pool)
        tasks = self.abandon_loop(
            apool.acquire(PATIENCE), condition=lambda: pool.stats().waiting == 1
        )
        self.assertIs(pool.close(timeout=0), False)
        pool.release(entry)
        self.assertEqual(len(tasks), 1)
        self.assertIs(pool.close(timeout=0), True)
        self.assertEqual(pool.stats().waiting, 0)

    def leave_in_line(self):
        """
        Return a pool, its only entry, which is lent, and a task that is in
        line for it, the pool of that task and its loop, which isn't running.
        """
        pool = self.make_thread_pool(max_size=1)
        entry = pool.acquire()
        apool = AsyncConnectionPool(pool=pool)
        loop = asyncio.new_event_loop()
        loop.set_exception_handler(lambda loop, context: None)
        task = loop.create_task(apool.acquire(PATIENCE))
        loop.run_until_complete(until(lambda: pool.stats().waiting))
        return pool, entry, task, apool, loop

    def test_closed_with_a_grant_on_its_way(self):
        pool, entry, task, apool, loop = self.leave_in_line()
        # The loop takes note of it, but doesn't get to it anymore.
        pool.release(entry)
        del entry
        self.assertEqual(pool.stats().in_use, 1)
        loop.close()
        with self.assertNoWarnings():
            del task, loop
            gc.collect()
        self.assertServesThreads(pool, 1)
        self.assertEqual(self.connector.most_open, 1)

    def test_closed_when_told_of_a_grant(self):
        """A loop that is closed at that moment keeps what it's told."""
        pool, entry, task, apool, loop = self.leave_in_line()
        with take_too_late(loop) as kept:
            pool.release(entry)
        self.assertEqual(len(kept), 1)
        self.assertIs(task.done(), False)
        stats = pool.stats()
        self.assertEqual((stats.idle, stats.in_use, stats.lost), (1, 0, 0))
        del task, entry
        self.assertServesThreads(pool, 1)
        self.assertIs(apool._loop, loop)

    def test_closed_after_it_was_told_of_a_grant(self):
        pool, entry, task, apool, loop = self.leave_in_line()
        with take_and_close(loop, task):
            pool.release(entry)
        self.assertIs(task.result(), entry)
        stats = pool.stats()
        self.assertEqual((stats.idle, stats.in_use, stats.lost), (0, 1, 0))
        pool.release(entry)

    def test_run_ends_with_a_grant_on_its_way(self):
        """Unlike loop.close(), asyncio.run() cancels what is left."""
        pool = self.make_thread_pool(max_size=1)
        entry = pool.acquire()
        apool = AsyncConnectionPool(pool=pool)

        async def main():
            tasks.append(asyncio.create_task(apool.acquire(PATIENCE)))
            await until(lambda: pool.stats().waiting)
            # The last thing that happens before tasks are cancelled.
            asyncio.get_running_loop().call_soon(pool.release, entry)

        tasks = []
        asyncio.run(main())
        self.assertIs(tasks[0].cancelled(), True)
        stats = pool.stats()
        self.assertEqual((stats.idle, stats.in_use, stats.lost), (1, 0, 0))

    def test_closed_with_entries_lent(self):
        pool = self.make_thread_pool(max_size=2)
        apool = AsyncConnectionPool(pool=pool)

        async def hold():
            entry = await apool.acquire()
            await asyncio.Event().wait()
            # Never reached; it's a reference.
            await apool.release(entry)

        async def hold_in_block():
            async with apool.connection():
                await asyncio.Event().wait()

        with (
            self.assertNoWarnings(),
            self.assertLogs("django.db.pool", "WARNING") as cm,
        ):
            tasks = self.abandon_loop(
                hold(),
                hold_in_block(),
                condition=lambda: pool.stats().in_use == 2,
            )
            self.assertEqual(len(tasks), 2)
            del tasks

            def are_back():
                # Housekeeping may be at it, too.
                gc.collect()
                pool.reap()
                return not pool.stats().in_use

            wait_until(are_back)
        for output in cm.output:
            self.assertIn("a connection came back because its user was gone", output)
        self.assertServesThreads(pool, 2)

    def test_stress(self):
        """
        Loops are closed under their tasks, which hold connections or are being
        granted some, while threads borrow and others collect garbage.
        """
        max_size = 3
        pool = self.make_thread_pool(
            self.make_connector(ping_after=0.0), max_size=max_size, check="ping"
        )
        self.addCleanup(sys.setswitchinterval, sys.getswitchinterval())
        # What other tests left isn't looked at each time.
        gc.freeze()
        self.addCleanup(gc.unfreeze)
        is_over = threading.Event()
        self.addCleanup(is_over.set)
        # They keep their loops, and so whatever these keep.
        apools = []
        taken_away = []

        @contextmanager
        def own(connection):
            me = object()
            if connection.owner is not None or connection.closed:
                taken_away.append(connection)
            connection.owner = me
            yield
            if connection.owner is not me or connection.closed:
                taken_away.append(connection)
            connection.owner = None

        async def use(apool, choice):
            while True:
                fate = choice.randrange(5)
                if fate < 2:
                    async with apool.connection(PATIENCE) as connection:
                        with own(connection):
                            await asyncio.sleep(0)
                    continue
                entry = await apool.acquire(PATIENCE)
                with own(entry.connection):
                    await asyncio.sleep(0)
                if fate == 2:
                    await apool.release(entry)
                elif fate == 3:
                    await apool.discard(entry)
                else:
                    cycle = [entry]
                    cycle.append(cycle)
                    del cycle
                del entry

        def run_loops(number):
            choice = random.Random(number)
            for _ in range(15):
                apool = AsyncConnectionPool(pool=pool)
                apools.append(apool)
                loop = asyncio.new_event_loop()
                loop.set_exception_handler(lambda loop, context: None)
                for _ in range(choice.choice([1, 4, 8])):
                    loop.create_task(use(apool, choice))
                loop.run_until_complete(asyncio.sleep(choice.random() / 200))
                loop.close()

        def borrow():
            while not is_over.is_set():
                with pool.connection(PATIENCE) as connection, own(connection):
                    time.sleep(0.0005)

        def collect():
            # As long as somebody may wait for what is lost: otherwise that
            # comes back at a deadline only.
            while any(borrower.is_alive() for borrower in borrowers):
                gc.collect()
                pool.reap()
                time.sleep(0.002)

        def are_back():
            gc.collect()
            pool.reap()
            return not pool.stats().in_use and is_quiet(pool)

        with self.assertLogs("django.db.pool", "WARNING"):
            sys.setswitchinterval(1e-6)
            borrowers = [self.spawn(borrow), self.spawn(borrow)]
            collector = self.spawn(collect)
            for task in [self.spawn(run_loops, number) for number in range(2)]:
                task.result()
            is_over.set()
            for thread in [*borrowers, collector]:
                thread.result()
            sys.setswitchinterval(0.005)
            wait_until(are_back)
        self.assertEqual(taken_away, [])
        self.assertStatsAddUp(pool, self.connector)
        self.assertEqual(len(apools), 30)
        self.assertServesThreads(pool, max_size)
        self.assertLessEqual(self.connector.most_open, max_size)
        self.assertIs(pool.close(timeout=PATIENCE), True)
        self.assertEqual(self.connector.open_now, 0)

    def test_entries_come_back_by_threads(self):
        """What is lent to a task belongs to no loop."""
        pool = self.make_thread_pool(max_size=1)
        apool = AsyncConnectionPool(pool=pool)
        entry = asyncio.run(apool.acquire())
        pool.release(entry)
        other = AsyncConnectionPool(pool=pool)

        async def main():
            entry = await other.acquire(timeout=0)
            await other.release(entry)

        asyncio.run(main())
        self.assertEqual(self.connector.opens, 1)

    def test_entries_come_back_in_another_loop(self):
        pool = self.make_pool(max_size=2)
        first, second = asyncio.run(self.lend(pool, 2))
        first.connection.is_clean = False

        async def main():
            await pool.release(first)
            await pool.discard(second)

        asyncio.run(main())
        stats = pool.stats()
        self.assertEqual((stats.idle, stats.in_use, stats.resets), (1, 0, 1))

    def test_foreign_loop(self):
        pool = self.make_pool(name="other")
        asyncio.run(self.lend_and_return(pool, 1))
        msg = (
            "This pool of 'other' belongs to another event loop. Use "
            "django.db.pool.apools['other'], which finds the pool of the running loop."
        )
        for method in (pool.acquire, pool.open, pool.wait):
            with self.subTest(method.__name__):
                with self.assertRaisesMessage(PoolError, msg):
                    asyncio.run(method())

        async def use():
            async with pool.connection():
                self.fail("It's another loop's.")

        with self.assertRaisesMessage(PoolError, msg):
            asyncio.run(use())
        self.assertEqual(pool.stats().idle, 1)

    def test_no_running_loop(self):
        pool = self.make_pool()
        msg = (
            "The pool of 'default' for tasks was used without a running event loop. "
            "Use django.db.pool.pools in threads."
        )
        for method in (pool.acquire, pool.open, pool.wait):
            with self.subTest(method.__name__):
                with self.assertRaisesMessage(PoolError, msg):
                    drive(method())
        # It's bound to none by that.
        asyncio.run(self.lend_and_return(pool, 1))
        with self.assertRaisesMessage(PoolError, msg):
            drive(pool.acquire())
        self.assertEqual(pool.stats().idle, 1)

    def test_many_loops_one_after_another(self):
        pool = self.make_thread_pool(max_size=2)
        for _ in range(50):
            asyncio.run(self.lend_and_return(AsyncConnectionPool(pool=pool), 2))
        self.assertEqual(self.connector.opens, 2)
        self.assertEqual(pool.stats().acquired, 100)

    def test_loops_in_several_threads(self):
        pool = self.make_thread_pool(max_size=2)
        barrier = threading.Barrier(4, timeout=PATIENCE)

        async def use(apool):
            async with apool.connection(PATIENCE) as connection:
                self.assertIsNone(connection.owner)
                connection.owner = asyncio.current_task()
                await asyncio.sleep(0)
                self.assertIs(connection.owner, asyncio.current_task())
                connection.owner = None

        async def main():
            apool = AsyncConnectionPool(pool=pool)
            await asyncio.gather(*[use(apool) for _ in range(20)])

        def run_loops():
            barrier.wait()
            for _ in range(5):
                asyncio.run(main())

        for task in [self.spawn(run_loops) for _ in range(4)]:
            task.result()
        self.assertLessEqual(self.connector.opens, 2)
        stats = pool.stats()
        self.assertEqual((stats.acquired, stats.in_use, stats.waiting), (400, 0, 0))

    def test_tasks_are_collected_while_the_lock_is_held(self):
        """Garbage may be collected at any time, by whoever has the lock."""
        connector = self.make_connector(GatedConnector)
        # Not closed by a cleanup, which would wait for the lock too.
        pool = ConnectionPool(connector, max_size=2, check="ping")
        connector.gate.set()
        entries = [pool.acquire(), pool.acquire()]
        apool = AsyncConnectionPool(pool=pool)
        loop = asyncio.new_event_loop()
        loop.set_exception_handler(lambda loop, context: None)
        connector.gate.clear()
        connector.visitors = 0
        # One whose ping is on its way, and one that doesn't know of its grant.
        pinged = loop.create_task(apool.acquire(PATIENCE))
        loop.run_until_complete(until(lambda: pool.stats().waiting == 1))
        pool.release(entries.pop())
        loop.run_until_complete(until(lambda: connector.visitors == 1))
        granted = loop.create_task(apool.acquire(PATIENCE))
        loop.run_until_complete(until(lambda: pool.stats().waiting == 1))
        pool.release(entries.pop())
        gone = [weakref.ref(granted), weakref.ref(pinged)]
        loop.close()
        connector.gate.set()
        del granted, pinged, loop

        def collect():
            with pool._lock:
                gc.collect()

        self.spawn(collect).result()
        # The thread that pinged may be about to give up.
        wait_until(lambda: gc.collect() >= 0 and not any(ref() for ref in gone))
        pool.reap()
        wait_until(lambda: not pool.stats().in_use)
        self.assertServesThreads(pool, 2)
        self.assertIs(pool.close(timeout=PATIENCE), True)

    async def test_coroutine_is_collected_while_the_lock_is_held(self):
        """The same for one whose ping has ended."""
        connector = self.make_connector(ping_after=0.0)
        pool = AsyncConnectionPool(connector, max_size=1)
        await self.lend_and_return(pool, 1)
        coroutine = pool.acquire()
        future = coroutine.send(None)
        await until(future.done)

        def collect():
            with pool._pool._lock:
                coroutine.close()

        self.spawn(collect).result()
        async with pool.connection(PATIENCE):
            self.assertEqual(pool.stats().lost, 1)
        self.assertEqual(connector.most_open, 1)
        self.assertIs(await pool.close(PATIENCE), True)

    def test_pool_is_closed_in_its_loop(self):
        connector = self.make_connector()

        async def main():
            async with AsyncConnectionPool(connector, max_size=2) as pool:
                await self.lend_and_return(pool, 2)
                return pool

        pool = asyncio.run(main())
        self.assertEqual(connector.open_now, 0)
        msg = "The pool of 'default' is closed. Make a new one, or close it later."
        with self.assertRaisesMessage(PoolClosed, msg):
            asyncio.run(pool.acquire())


class AsyncPoolTests(AsyncPoolTestCase):
    # Making one.

    def test_connector_or_pool(self):
        msg = "AsyncConnectionPool takes a connector or a pool."
        with self.assertRaisesMessage(TypeError, msg):
            AsyncConnectionPool()
        pool = self.make_thread_pool()
        with self.assertRaisesMessage(TypeError, msg):
            AsyncConnectionPool(self.connector, pool=pool)

    def test_other_pools(self):
        class OtherPool(BasePool):
            pass

        pool = OtherPool(self.make_connector())
        msg = (
            "OtherPool can't lend connections to tasks. Remove 'pool_class', or use "
            "one that is derived from django.db.pool.ConnectionPool."
        )
        with self.assertRaisesMessage(PoolError, msg):
            AsyncConnectionPool(pool=pool)

    def test_attributes(self):
        pool = self.make_pool(name="reports", max_size=3)
        self.assertEqual(repr(pool), "<AsyncConnectionPool name='reports' max_size=3>")
        self.assertEqual(pool.name, "reports")
        self.assertIs(pool.connector, self.connector)
        self.assertEqual(pool.options.max_size, 3)
        self.assertEqual(pool.stats().size, 0)

    # Failing.

    async def test_timeout(self):
        pool = self.make_pool(max_size=1)
        entry = await pool.acquire()
        msg = (
            "Couldn't acquire a connection to 'default' within 0.01 seconds "
            "(max_size=1, 1 in use, 1 waiting). Raise max_size or shorten "
            "transactions. Held longest: 0."
        )
        with self.assertRaisesMessage(PoolTimeout, msg) as cm:
            await pool.acquire(timeout=0.01)
        self.assertIsNone(cm.exception.__cause__)
        stats = pool.stats()
        self.assertEqual((stats.timeouts, stats.waiting), (1, 0))
        self.assertIs(pool._pool._core.contended, False)
        await pool.release(entry)

    async def test_those_behind_who_timed_out_are_served(self):
        pool = self.make_pool(max_size=1)
        entry = await pool.acquire()
        (impatient,) = await self.queue(pool, 1, timeout=0.25)
        (patient,) = await self.queue(pool, 1)
        with self.assertRaises(PoolTimeout):
            await impatient
        await pool.release(entry)
        self.assertIs(await patient, entry)

    async def test_grant_at_the_deadline(self):
        for is_timer_first in (True, False):
            with self.subTest(is_timer_first=is_timer_first):
                pool = self.make_pool_with_clock(max_size=1)
                entry = await pool.acquire()
                (task,) = await self.queue(pool, 1)
                (waiter,) = pool._pool._core.waiters
                self.clock.advance(PATIENCE)
                if is_timer_first:
                    waiter.wake()
                    drive(pool.release(entry))
                else:
                    drive(pool.release(entry))
                    waiter.wake()
                self.assertIs(await task, entry)
                self.assertEqual(pool.stats().timeouts, 0)
                # Being told once more does no harm.
                waiter.notify()
                await pool.release(entry)

    async def test_grant_after_the_deadline(self):
        """As long as the task hasn't left the line."""
        pool = self.make_pool(max_size=1)
        entry = await pool.acquire()
        with mock.patch.object(
            pool._pool,
            "_collect_garbage",
            side_effect=lambda: drive(pool.release(entry)),
        ):
            self.assertIs(await pool.acquire(timeout=0.01), entry)
        self.assertEqual(pool.stats().timeouts, 0)
        await pool.release(entry)

    async def test_one_timer(self):
        """It's set once for all who wait equally long."""
        pool = self.make_pool(max_size=1)
        entry = await pool.acquire()
        with mock.patch.object(pool, "_expect", wraps=pool._expect) as expect:
            tasks = await self.queue(pool, 1)
            timer = pool._timer
            tasks += await self.queue(pool, 4)
        self.assertEqual(expect.call_count, 5)
        self.assertIs(pool._timer, timer)
        self.assertIs(timer.cancelled(), False)
        await pool.release(entry)
        for task in tasks:
            await pool.release(await task)

    async def test_shorter_timeouts_come_later(self):
        pool = self.make_pool(max_size=1)
        entry = await pool.acquire()
        patient = await self.queue(pool, 1)
        timeouts = [0.05, 0.02, 0.03, 0.02]
        impatient = [asyncio.create_task(pool.acquire(timeout)) for timeout in timeouts]
        done, _ = await asyncio.wait(impatient, timeout=PATIENCE)
        self.assertEqual(done, set(impatient))
        self.assertIs(patient[0].done(), False)
        for task in impatient:
            with self.assertRaises(PoolTimeout):
                await task
        self.assertEqual(pool.stats().timeouts, 4)
        # And those who come after that.
        with self.assertRaises(PoolTimeout):
            await asyncio.wait_for(pool.acquire(0.01), PATIENCE)
        await pool.release(entry)
        await pool.release(await patient[0])

    async def test_garbage_is_collected_before_giving_up(self):
        pool = self.make_pool(max_size=1)
        gc.collect()
        self.addCleanup(gc.set_threshold, *gc.get_threshold())
        gc.set_threshold(0)
        cycle = [await pool.acquire()]
        cycle.append(cycle)
        del cycle
        # The connection is closed, and another one opened, but not at once.
        self.connector.block()
        with mock.patch.object(threads, "_next_collection", float("-inf")):
            with self.assertRaises(PoolTimeout):
                await pool.acquire(timeout=0.01)
        self.connector.unblock()
        entry = await pool.acquire(timeout=PATIENCE)
        self.assertEqual(pool.stats().lost, 1)
        await pool.release(entry)

    async def test_max_waiting(self):
        pool = self.make_pool(max_size=1, max_waiting=2)
        entry = await pool.acquire()
        tasks = await self.queue(pool, 2)
        msg = (
            "Refused to wait for a connection to 'default' (max_size=1, 2 waiting "
            "already, max_waiting=2)."
        )
        with self.assertRaisesMessage(PoolFull, msg):
            await pool.acquire()
        # Cancelling makes room.
        tasks.pop().cancel()
        await until(lambda: pool.stats().waiting == 1)
        tasks += await self.queue(pool, 1)
        await pool.release(entry)
        for task in tasks:
            await pool.release(await task)
        stats = pool.stats()
        self.assertEqual((stats.refused, stats.acquired, stats.in_use), (1, 3, 0))

    async def test_refused_with_an_unhealthy_entry(self):
        pool = self.make_pool(check="ping", max_size=1, max_waiting=1)
        (connection,) = await self.lend_and_return(pool, 1)
        connection.kill()
        with mock.patch.object(PoolCore, "enqueue", side_effect=PoolFull("Refused.")):
            with self.assertRaisesMessage(PoolFull, "Refused."):
                await pool.acquire()
        await until(lambda: connection.closed)
        self.assertEqual(pool.stats().lost, 0)
        await self.assertAllCanBeLent(pool, self.connector)

    async def test_connect_errors_are_each_tasks_own(self):
        pool = self.make_pool(max_size=1)
        self.connector.block()
        self.connector.fail_with = refuse_connection
        tasks = await self.queue(pool, 5)
        self.connector.unblock()
        errors = await asyncio.gather(*tasks, return_exceptions=True)
        for error in errors:
            self.assertIs(type(error), OperationalError)
            self.assertEqual(str(error), str(refuse_connection()))
        self.assertEqual(len({id(error) for error in errors}), 5)
        self.connector.fail_with = None
        await self.assertAllCanBeLent(pool, self.connector)

    async def test_release_by_the_wrong_pool(self):
        pool = self.make_pool()
        other = AsyncConnectionPool(self.connector, name="other")
        entry = await pool.acquire()
        msg = "isn't lent by the pool of 'other'"
        for method in (other.release, other.discard):
            with self.assertRaisesMessage(PoolError, msg):
                await method(entry)
        self.assertIs(entry.connection_in_loop, entry.connection)
        await pool.release(entry)
        self.assertEqual(pool.stats().idle, 1)

    async def test_release_of_what_a_thread_acquired(self):
        pool = self.make_pool()
        entry = pool._pool.acquire()
        with self.assertRaisesMessage(PoolError, "isn't lent by the pool"):
            await pool.release(entry)
        pool._pool.release(entry)
        self.assertEqual(pool.stats().idle, 1)

    async def test_release_twice(self):
        pool = self.make_pool(self.make_connector(GatedConnector))
        entry = await pool.acquire()
        entry.connection.is_clean = False
        task = asyncio.create_task(pool.release(entry))
        await until(lambda: self.connector.visitors)
        # It's being cleaned.
        for method in (pool.release, pool.discard):
            with self.assertRaisesMessage(PoolError, "it was given back before"):
                await method(entry)
        self.connector.gate.set()
        self.assertIsNone(await task)
        self.assertEqual(pool.stats().idle, 1)

    # Not blocking.

    async def test_nothing_blocks_the_loop(self):
        """Whatever may take a round trip is done in a thread."""
        calls = []
        ident = threading.get_ident()

        def note(name, method):
            @functools.wraps(method)
            def noting(*args, **kwargs):
                calls.append((name, threading.get_ident() == ident))
                return method(*args, **kwargs)

            return noting

        connector = self.make_connector(uses_sockets=True)
        names = ("open", "configure", "check", "reset", "close")
        for name in names:
            setattr(connector, name, note(name, getattr(connector, name)))
        pool = self.make_pool_with_clock(connector, max_size=2, max_lifetime=100.0)
        await self.lend_and_return(pool, 2)
        # Unclean.
        entry = await pool.acquire()
        entry.connection.is_clean = False
        await pool.release(entry)
        # To be pinged.
        self.clock.advance(50)
        await self.lend_and_return(pool, 2)
        # Outdated.
        entry = await pool.acquire()
        await pool.drain()
        await pool.release(entry)
        # Too old, when it comes back and when it's asked for.
        entry = await pool.acquire()
        self.clock.advance(100)
        await pool.release(entry)
        await self.lend_and_return(pool, 1)
        self.clock.advance(100)
        await self.lend_and_return(pool, 1)
        # Dead.
        connector.kill_all()
        self.clock.advance(1)
        await self.lend_and_return(pool, 2)
        # Returned by a finalizer, unclean, while somebody waits.
        first, second = await self.lend(pool, 2)
        (task,) = await self.queue(pool, 1)
        second.connection.is_clean = False
        second.connection_in_loop = None
        pool._pool.release_later(second)
        second = None
        await pool.release(first)
        await pool.release(await task)
        # More than there may be.
        entries = await self.lend(pool, 2)
        await pool.resize(0, 1)
        await self.give_back(pool, entries)
        await pool.check()
        await pool.suspend()
        await pool.resume()
        await pool.discard(await pool.acquire())
        await pool.close()
        self.assertEqual({name for name, _ in calls}, set(names))
        self.assertEqual({name for name, is_in_loop in calls if is_in_loop}, set())
        self.assertEqual(connector.open_now, 0)

    async def test_loop_runs_during_what_blocks(self):
        connector = self.make_connector(GatedConnector)
        pool = self.make_pool(connector, check="ping", max_size=1)
        await self.lend_and_return(pool, 1)
        # Its ping, its reset.
        for number in (1, 2):
            task = asyncio.create_task(pool.acquire())
            await until(lambda: connector.visitors == 2 * number - 1)
            self.assertIs(task.done(), False)
            connector.gate.set()
            entry = await task
            connector.gate.clear()
            entry.connection.is_clean = False
            task = asyncio.create_task(pool.release(entry))
            await until(lambda: connector.visitors == 2 * number)
            self.assertIs(task.done(), False)
            connector.gate.set()
            await task
            connector.gate.clear()
        self.assertEqual(pool.stats().reused, 2)

    # Connectors with an object of their own for tasks.

    async def test_enter_and_leave_loop(self):
        calls = []

        class Connector(FakeConnector):
            def enter_loop(self, entry, loop):
                calls.append(("enter", loop))
                entry.connection_in_loop = ("wrapped", entry.connection)

            def leave_loop(self, entry):
                calls.append(("leave", None))
                entry.connection_in_loop = None

        pool = self.make_pool(self.make_connector(Connector))
        loop = asyncio.get_running_loop()
        for _ in range(2):
            async with pool.connection() as connection:
                self.assertEqual(connection, ("wrapped", self.connector.connections[0]))
        self.assertEqual(calls, [("enter", loop), ("leave", None)] * 2)
        await pool.discard(await pool.acquire())
        self.assertEqual(len(calls), 6)
        self.assertEqual(pool.stats().size, 0)

    async def test_leave_loop_in_the_midst_of_something(self):
        class Connector(FakeConnector):
            def leave_loop(self, entry):
                entry.connection_in_loop = None
                return self.pending

        for name in ("release", "discard"):
            with self.subTest(name):
                pool = self.make_pool(self.make_connector(Connector), max_size=1)
                self.connector.pending = Future()
                entry = await pool.acquire()
                connection = entry.connection
                self.assertIsNone(drive(getattr(pool, name)(entry)))
                self.assertIs(connection.closed, False)
                with self.assertRaises(PoolError):
                    await pool.release(entry)
                (task,) = await self.queue(pool, 1)
                self.connector.pending.set_result(None)
                self.assertIsNot((await task).connection, connection)
                self.assertIs(connection.closed, True)
                self.assertEqual(self.connector.most_open, 1)

    # Steering.

    async def test_suspend_and_resume(self):
        pool = self.make_pool()
        await self.lend_and_return(pool, 2)
        await pool.suspend()
        with self.assertRaisesMessage(PoolTimeout, "The pool is suspended."):
            await pool.acquire(timeout=0.01)
        tasks = await self.queue(pool, 2)
        self.assertEqual(pool.stats().in_use, 0)
        await pool.resume()
        entries = [await task for task in tasks]
        self.assertEqual(pool.stats().in_use, 2)
        await self.give_back(pool, entries)
        self.assertEqual(self.connector.opens, 2)

    async def test_drain(self):
        pool = self.make_pool()
        entries = await self.lend(pool, 2)
        connections = [entry.connection for entry in entries]
        await pool.release(entries.pop())
        await pool.drain()
        self.assertEqual([c.closed for c in connections], [False, True])
        await pool.release(entries.pop())
        self.assertEqual([c.closed for c in connections], [True, True])

    async def test_resize(self):
        pool = self.make_pool(max_size=1)
        entry = await pool.acquire()
        (task,) = await self.queue(pool, 1)
        await pool.resize(0, 2)
        other = await task
        self.assertIsNot(other.connection, entry.connection)
        await pool.resize(0, 1)
        await self.give_back(pool, [entry, other])
        await until(lambda: self.connector.open_now == 1)
        self.assertEqual(pool.stats().size, 1)
        with self.assertRaises(ImproperlyConfigured):
            await pool.resize(0, 0)

    async def test_check(self):
        pool = self.make_pool()
        connections = await self.lend_and_return(pool, 2)
        await pool.check()
        self.assertEqual(self.connector.checks, 2)
        self.connector.kill_all()
        await pool.check()
        self.assertEqual([connection.closed for connection in connections], [True] * 2)

    async def test_open_and_wait(self):
        pool = self.make_pool(min_size=2)
        self.connector.block()
        await pool.open()
        msg = "couldn't open min_size=2 connections within 0.01 seconds"
        with self.assertRaisesMessage(PoolTimeout, msg):
            await pool.wait(timeout=0.01)
        self.connector.unblock()
        await pool.wait(timeout=PATIENCE)
        self.assertEqual(pool.stats().idle, 2)
        await pool.open(wait=True)
        self.assertEqual(self.connector.opens, 2)

    async def test_close_of_the_owner(self):
        pool = self.make_pool(max_size=2)
        entries = await self.lend(pool, 2)
        await pool.release(entries.pop())
        await pool.suspend()
        tasks = await self.queue(pool, 2)
        self.assertIs(await pool.close(timeout=0), False)
        msg = "The pool of 'default' was closed while waiting for a connection."
        for task in tasks:
            with self.assertRaisesMessage(PoolClosed, msg):
                await task
        with self.assertRaisesMessage(PoolClosed, "is closed. Make a new one"):
            await pool.acquire()
        closing = asyncio.create_task(pool.close(timeout=PATIENCE))
        await pool.release(entries.pop())
        self.assertIs(await closing, True)
        self.assertEqual(self.connector.open_now, 0)

    async def test_close_of_who_does_not_own_the_pool(self):
        thread_pool = self.make_thread_pool(max_size=1)
        async with AsyncConnectionPool(pool=thread_pool) as pool:
            entry = await pool.acquire()
            (task,) = await self.queue(pool, 1)
        with self.assertRaisesMessage(PoolClosed, "is closed. Make a new one"):
            await pool.acquire()
        # What was begun is brought to its end.
        await pool.release(entry)
        await pool.release(await task)
        self.assertEqual(thread_pool.stats().idle, 1)
        with thread_pool.connection(timeout=0) as connection:
            self.assertIs(connection.closed, False)
        await self.lend_and_return(AsyncConnectionPool(pool=thread_pool), 1)
        self.assertEqual(self.connector.opens, 1)

    # What a pool tells.

    async def test_stats(self):
        thread_pool = self.make_thread_pool(max_size=2)
        pool = AsyncConnectionPool(pool=thread_pool)
        entry = await pool.acquire()
        other = thread_pool.acquire()
        (task,) = await self.queue(pool, 1)
        stats = pool.stats()
        self.assertEqual((stats.size, stats.in_use, stats.waiting), (2, 2, 1))
        await pool.release(entry)
        entry = await task
        await pool.release(entry)
        thread_pool.release(other)
        stats = self.assertStatsAddUp(pool, self.connector)
        self.assertEqual((stats.acquired, stats.reused, stats.in_use), (3, 1, 0))
        self.assertEqual(sum(stats.wait_counts), 3)
        self.assertEqual(thread_pool.stats().acquired, 3)

    async def test_leak_threshold(self):
        pool = self.make_pool_with_clock(leak_threshold=10.0)
        # Opened, and warm.
        for _ in range(2):
            entry = await pool.acquire()
            self.clock.advance(12.0)
            with self.assertLogs("django.db.pool", logging.WARNING) as cm:
                pool._pool.reap()
            (output,) = cm.output
            self.assertIn("a connection is in use for 12.00 seconds", output)
            self.assertIn("in test_leak_threshold\n    entry = await pool.", output)
            last_line = output.rstrip().splitlines()[-1].strip("~^ ")
            self.assertIn(last_line, ("", "entry = await pool.acquire()"))
            self.assertNotIn("in acquire", output)
            with self.assertLogs("django.db.pool", logging.WARNING) as cm:
                await pool.release(entry)
            self.assertIn("came back after 12.00 seconds", cm.output[0])

    async def test_lost_entry(self):
        pool = self.make_pool(max_size=1)
        for number in (1, 2, 3):
            entry = await pool.acquire(PATIENCE)
            connection = entry.connection
            del entry
            async with pool.connection(PATIENCE) as other:
                self.assertIsNot(other, connection)
            # Its task may have been in the midst of a query.
            self.assertIs(connection.closed, True)
            self.assertEqual(pool.stats().lost, number)
        self.assertEqual(self.connector.most_open, 1)

    async def test_lost_entry_serves_those_who_wait(self):
        pool = self.make_pool(max_size=1)
        entries = await self.lend(pool, 1)
        (task,) = await self.queue(pool, 1)
        with self.assertLogs("django.db.pool", logging.WARNING) as cm:
            entries.clear()
            entry = await task
        self.assertIn("because its user was gone", cm.output[0])
        self.assertEqual(self.connector.most_open, 1)
        await pool.release(entry)

    async def test_null_pool(self):
        thread_pool = self.make_thread_pool(pool_class=NullPool, max_size=1)
        pool = AsyncConnectionPool(pool=thread_pool)
        for serial in (1, 2, 3):
            async with pool.connection(PATIENCE) as connection:
                self.assertEqual(connection.serial, serial)
                (task,) = await self.queue(pool, 1)
                task.cancel()
                await asyncio.wait([task])
            self.assertIs(connection.closed, True)
        self.assertEqual(pool.stats().size, 0)
        self.assertEqual(self.connector.most_open, 1)

    async def test_null_pool_and_a_grant_nobody_wants(self):
        thread_pool = self.make_thread_pool(pool_class=NullPool, max_size=1)
        pool = AsyncConnectionPool(pool=thread_pool)
        self.connector.block()
        (task,) = await self.queue(pool, 1)
        (waiter,) = thread_pool._core.waiters
        self.connector.unblock()
        wait_until(lambda: waiter.entry is not None)
        task.cancel()
        await asyncio.wait([task])
        await until(lambda: self.connector.closes)
        self.assertEqual(pool.stats().size, 0)


class CallInThreadTests(SimpleTestCase):
    def setUp(self):
        self.go_on = threading.Event()
        self.addCleanup(self.go_on.set)
        self.given_up = []

    def call(self, result=7, error=None):
        """Begin a call that ends when the test says so. Return its future."""
        called = threading.Event()

        def function(result):
            called.set()
            self.go_on.wait(PATIENCE)
            if error is not None:
                raise error
            return result

        future = call_in_thread(function, result, give_up=self.given_up.append)
        self.assertIs(called.wait(PATIENCE), True)
        return future

    async def test_result(self):
        idents = []

        def function(*args):
            idents.append(threading.get_ident())
            return args

        result = await call_in_thread(function, 1, 2, give_up=self.given_up.append)
        self.assertEqual(result, (1, 2))
        self.assertNotEqual(idents, [threading.get_ident()])
        self.assertEqual(self.given_up, [])

    async def test_error(self):
        for error in (ValueError("no"), SystemExit(3)):
            with self.subTest(error=error):
                future = self.call(error=error)
                self.go_on.set()
                with self.assertRaises(type(error)) as cm:
                    # Not by awaiting it, for which SystemExit ends the loop.
                    await until(future.done)
                    future.result()
                self.assertIs(cm.exception, error)
        self.assertEqual(self.given_up, [])

    async def test_cancelled(self):
        future = self.call()
        future.cancel()
        self.assertEqual(self.given_up, [])
        self.go_on.set()
        await until(lambda: self.given_up)
        self.assertEqual(self.given_up, [7])
        self.assertIs(future.cancelled(), True)

    async def test_cancelled_when_the_result_is_on_its_way(self):
        loop = asyncio.get_running_loop()
        call_soon = loop.call_soon_threadsafe
        is_on_its_way = threading.Event()

        def call_soon_and_tell(*args):
            call_soon(*args)
            is_on_its_way.set()

        with mock.patch.object(loop, "call_soon_threadsafe", call_soon_and_tell):
            future = self.call()
            self.go_on.set()
            # Without letting the loop go on.
            self.assertIs(is_on_its_way.wait(PATIENCE), True)
            future.cancel()
        self.assertEqual(self.given_up, [])
        await until(lambda: self.given_up)
        self.assertEqual(self.given_up, [7])

    async def test_cancelled_without_give_up(self):
        done = threading.Event()
        future = call_in_thread(done.set)
        future.cancel()
        self.assertIs(done.wait(PATIENCE), True)
        self.assertEqual(await call_in_thread(int, "3"), 3)

    async def test_cancelled_and_error(self):
        """There's nothing to give up then."""
        future = self.call(error=ValueError("no"))
        future.cancel()
        self.go_on.set()
        # Later than the other.
        await call_in_thread(threading.Event().is_set)
        await asyncio.sleep(0)
        self.assertEqual(self.given_up, [])
        self.assertIs(future.cancelled(), True)

    def test_closed_loop(self):
        async def main():
            return self.call()

        loop = asyncio.new_event_loop()
        future = loop.run_until_complete(main())
        loop.close()
        self.go_on.set()
        wait_until(lambda: self.given_up)
        self.assertEqual(self.given_up, [7])
        self.assertIs(future.done(), False)

    def prepare_call(self, loop):
        """Return a future, and the job that a thread was to do for it."""

        async def main():
            return call_in_thread(lambda: 7, give_up=self.given_up.append)

        with mock.patch.object(workers, "run") as run:
            future = loop.run_until_complete(main())
        (job,) = run.call_args.args
        return future, job

    def test_closed_when_told_of_the_result(self):
        """A loop that is closed at that moment keeps what it's told."""
        loop = asyncio.new_event_loop()
        future, job = self.prepare_call(loop)
        with take_too_late(loop) as kept:
            job()
        self.assertEqual(len(kept), 1)
        self.assertEqual(self.given_up, [7])
        self.assertIs(future.done(), False)
        # It doesn't keep who waits for it, for good, with what that one holds.
        gone = weakref.ref(future)
        del future, job
        gc.collect()
        self.assertIsNone(gone())

    def test_closed_after_it_was_told_of_the_result(self):
        loop = asyncio.new_event_loop()
        future, job = self.prepare_call(loop)
        with take_and_close(loop, future):
            job()
        self.assertEqual(future.result(), 7)
        self.assertEqual(self.given_up, [])

    def test_closed_loop_and_error(self):
        ended = threading.Event()

        def function():
            self.go_on.wait(PATIENCE)
            ended.set()
            raise ValueError("no")

        async def main():
            call_in_thread(function, give_up=self.given_up.append)

        loop = asyncio.new_event_loop()
        loop.run_until_complete(main())
        loop.close()
        self.go_on.set()
        self.assertIs(ended.wait(PATIENCE), True)
        # The thread has survived it.
        self.assertEqual(asyncio.run(self.answer()), 42)
        self.assertEqual(self.given_up, [])

    async def answer(self):
        return await call_in_thread(lambda: 42)

    def test_no_running_loop(self):
        with self.assertRaisesMessage(RuntimeError, "no running event loop"):
            call_in_thread(int)

    async def test_no_more_threads(self):
        with (
            mock.patch.object(workers, "_free", 0),
            mock.patch.object(threading.Thread, "start", side_effect=RuntimeError),
        ):
            with self.assertRaises(RuntimeError):
                call_in_thread(int)

    async def test_calls_run_at_the_same_time(self):
        barrier = threading.Barrier(20, timeout=PATIENCE)
        calls = [call_in_thread(barrier.wait) for _ in range(20)]
        self.assertEqual(sorted(await asyncio.gather(*calls)), list(range(20)))

    async def test_threads_are_kept(self):
        self.assertEqual(workers._kept, 8)
        barrier = threading.Barrier(20, timeout=PATIENCE)
        await asyncio.gather(*[call_in_thread(barrier.wait) for _ in range(20)])
        await until(lambda: workers._free == 8)
        with mock.patch.object(threading.Thread, "start", side_effect=RuntimeError):
            barrier = threading.Barrier(8, timeout=PATIENCE)
            results = await asyncio.gather(
                *[call_in_thread(barrier.wait) for _ in range(8)]
            )
        self.assertEqual(sorted(results), list(range(8)))

    @skipUnless(hasattr(os, "fork"), "There are no forks.")
    def test_fork(self):
        """The threads are gone in a child, and the lock may be held."""
        self.assertEqual(asyncio.run(self.answer()), 42)
        with warnings.catch_warnings(), workers._lock:
            # That there are other threads is the point.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
            if not pid:
                status = 1
                try:
                    signal.alarm(10)
                    status = 0 if asyncio.run(self.answer()) == 42 else 2
                finally:
                    os._exit(status)
        _, status = os.waitpid(pid, 0)
        self.assertEqual(status, 0)


class SpeedTests(SpeedMixin, AsyncPoolTestCase):
    async def test_checkout(self):
        pool = self.make_pool(self.make_connector(uses_sockets=True), max_size=2)
        await self.lend_and_return(pool, 1)

        async def use():
            await pool.release(await pool.acquire())

        python, c = self.count(pool._pool, lambda: drive(use()))
        # Apart from drive(), use(), and is_clean(), which is the connector's:
        # acquire(), and one release() that calls the other.
        self.assertLessEqual(python, 2 + 1 + 3)
        self.assertLessEqual(python + c, 30)
