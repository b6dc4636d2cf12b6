"""
The pool for asyncio: lending connections to tasks, without blocking the loop.

A driver's connection belongs to no event loop. What belongs to one is how its
tasks wait, and the object by which they use the connection. So there is one
stock of connections for the threads and the tasks of a process, with one limit
and one line, and loops may come and go.
"""

import asyncio
import functools
import os
from asyncio import _get_running_loop
from contextlib import asynccontextmanager
from math import inf

from .base import BaseConnector
from .core import WAITING_INTERVAL, Waiter
from .exceptions import PoolClosed, PoolError
from .housekeeping import housekeeper
from .threads import ConnectionPool
from .workers import Workers

# Threads for what blocks. A thread that is kept costs little, and starting one
# takes longer than a query of a local database.
workers = Workers(kept=8)

# Seconds between two looks at who has waited for too long.
SHORTEST_PAUSE = 0.001

UNBOUND = "unbound"
CLOSED = "closed"

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=workers._forget)


def tell(loop, callback):
    """
    Have a loop call something soon, from another thread.

    Return False if the loop is closed, and won't call it if it hasn't yet.
    """
    try:
        loop.call_soon_threadsafe(callback)
    except RuntimeError:
        return False
    # It may have been closed between looking at that and taking the callback,
    # which it then keeps for as long as there is the loop.
    return not loop.is_closed()


def call_in_thread(function, *args, give_up=None):
    """
    Return a future of the running loop for what a function returns, which is
    called in a thread.

    The call goes on when the future is cancelled. Then, or if the loop is
    closed before it ends, `give_up` is called with what the function returned;
    in either case, from one thread or another. If the loop is closed right
    after that, nobody is told: entries come back as lost ones.
    """
    loop = asyncio.get_running_loop()
    future = loop.create_future()
    # What the function returned, and raised, until somebody takes it.
    outcome = []

    def call():
        nonlocal future, give_up
        try:
            outcome.append((function(*args), None))
        except BaseException as e:
            outcome.append((None, e))
        if not tell(loop, deliver):
            if outcome:
                forsake()
            # If the loop keeps deliver(), it mustn't keep the task by that.
            future = give_up = None

    def deliver():
        if future.cancelled():
            forsake()
            return
        result, error = outcome.pop()
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def forsake():
        result, error = outcome.pop()
        if error is None and give_up is not None:
            give_up(result)

    workers.run(call)
    return future


class TaskWaiter(Waiter):
    """
    A task in line. Its future is done when it has been served, or if it hasn't
    been at its deadline.
    """

    __slots__ = ("pool", "future", "deadline")

    def __init__(self, pool, loop, deadline):
        super().__init__()
        self.pool = pool
        self.future = loop.create_future()
        self.deadline = deadline

    def notify(self):
        loop = self.future.get_loop()
        if _get_running_loop() is loop:
            self.wake()
            return
        if not tell(loop, self.wake):
            # It was closed while its task was in line, or before the task took
            # what it was granted.
            self.pool._take_back_grant(self)

    def wake(self):
        if not self.future.done():
            self.future.set_result(None)


class AsyncConnectionPool:
    """
    A bounded pool of connections for the tasks of one event loop.

    It takes what ConnectionPool takes, and has its methods, as coroutines.
    With `pool`, a ConnectionPool, it lends that one's connections instead of
    its own: threads and tasks, of any number of loops, then share the limit
    and are served in the order of their arrival.

    The loop is the one that is running when the pool is first used. Another
    loop's tasks get a PoolError. Nothing has to be done when a loop is closed.

    Cancelling a task that waits in any of the methods takes effect at once.
    No connection is lost by that: one that was granted goes to who is next,
    and what a thread is doing meanwhile is brought to its end.
    """

    def __init__(self, connector=None, *, pool=None, name="default", **options):
        if (connector is None) == (pool is None):
            raise TypeError("AsyncConnectionPool takes a connector or a pool.")
        self._is_owner = pool is None
        if pool is None:
            pool = ConnectionPool(connector, name=name, **options)
        elif not isinstance(pool, ConnectionPool):
            raise PoolError(
                "%s can't lend connections to tasks. Remove 'pool_class', or use "
                "one that is derived from django.db.pool.ConnectionPool."
                % type(pool).__name__
            )
        self._pool = pool
        connector = pool.connector
        self._enter_loop = connector.enter_loop
        self._leave_loop = connector.leave_loop
        # Whether these do what the base class does, which is written out.
        self._has_plain_loops = (
            type(connector).enter_loop is BaseConnector.enter_loop
            and type(connector).leave_loop is BaseConnector.leave_loop
        )
        # The loop, or what no loop is: UNBOUND before the first use, CLOSED
        # after close().
        self._loop = UNBOUND
        # What wakes up those whose time is up, and when the next one's is.
        self._timer = None
        self._next_deadline = inf

    def __repr__(self):
        return "<%s name=%r max_size=%s>" % (
            type(self).__name__,
            self.name,
            self.options.max_size,
        )

    @property
    def name(self):
        return self._pool.name

    @property
    def connector(self):
        return self._pool.connector

    @property
    def options(self):
        return self._pool.options

    async def __aenter__(self):
        await self.open()
        return self

    async def __aexit__(self, exc_type, exc_value, traceback):
        await self.close()

    # Lending.

    @asynccontextmanager
    async def connection(self, timeout=None):
        """
        Lend a connection for the length of an `async with` block: the driver's
        own for asyncio, if it has such.

        `timeout` is as for acquire(). An exception within the block, and a
        cancellation, give the connection back like its end does.
        """
        entry = await self.acquire(timeout)
        try:
            yield entry.connection_in_loop
        except GeneratorExit:
            # The task is being collected: nothing may be locked or awaited.
            self.release_later(entry)
            raise
        except BaseException:
            await self.release(entry)
            raise
        await self.release(entry)

    async def acquire(self, timeout=None):
        """
        Return an Entry, whose `connection_in_loop` is the caller's until
        release().

        `timeout` is the longest wait in seconds; 0 doesn't wait, None means
        the pool's own timeout.

        Raise PoolTimeout, PoolFull or PoolClosed, or what connecting raised
        when nothing else could have served the caller.
        """
        loop = _get_running_loop()
        if loop is not self._loop:
            self._validate_loop(loop)
        pool = self._pool
        core = pool._core
        entry = None
        if not core.contended:
            try:
                entry = core.idle.pop()
            except IndexError:
                pass
            else:
                now = pool._clock()
                # As in ConnectionPool.acquire().
                if entry.generation == core.generation and (
                    now < entry.fresh_until
                    or entry.poll is not None
                    and now - entry.fresh_until < pool._ping_after
                    and now < entry.expires_at
                    and not entry.poll(0)
                    or await self._is_healthy(entry, now)
                ):
                    entry.acquired_at = now
                    entry.uses += 1
                    if self._has_plain_loops:
                        entry.connection_in_loop = entry.connection
                    elif (prepare := self._enter_loop(entry, loop)) is not None:
                        await self._prepare(entry, prepare)
                    return entry
        entry = await self._wait_for_entry(timeout, loop, entry)
        if (prepare := self._enter_loop(entry, loop)) is not None:
            await self._prepare(entry, prepare)
        return entry

    async def release(self, entry):
        """
        Take back an entry. Its connection is cleaned or closed as needed.

        Raise PoolError if the entry wasn't lent by this pool, or is back
        already; never because of the connection's state.
        """
        pool = self._pool
        core = pool._core
        acquired_at = entry.acquired_at
        if entry.connection_in_loop is None or entry.core is not core:
            return pool._refuse(entry)
        if self._has_plain_loops:
            entry.connection_in_loop = None
        elif (pending := self._leave_loop(entry)) is not None:
            # Whoever used it has given up on what it's still doing.
            self._discard_after(pending, entry)
            return
        # What ConnectionPool.release() does with what needs no cleaning.
        is_clean = pool._is_clean
        try:
            can_be_used = is_clean is None or is_clean(entry)
        except Exception:
            # Drivers raise when asked about a connection that was closed.
            can_be_used = False
        if can_be_used and entry.generation == core.generation:
            entry.idle_since = now = pool._clock()
            fresh_until = now + entry.trust
            if fresh_until > entry.expires_at:
                fresh_until = entry.expires_at
                can_be_used = now < fresh_until
            if can_be_used:
                entry.fresh_until = fresh_until
                entry.acquired_at = None
                entry.used_seconds += now - acquired_at
                core.idle.append(entry)
                if core.contended:
                    self._settle()
                return
        # It has to be cleaned or closed, which may take a round trip.
        await call_in_thread(pool.release, entry)

    async def discard(self, entry):
        """Take back an entry, and close its connection."""
        if entry.connection_in_loop is None or entry.core is not self._pool._core:
            return self._pool._refuse(entry)
        if (pending := self._leave_loop(entry)) is not None:
            self._discard_after(pending, entry)
        else:
            await call_in_thread(self._pool.discard, entry)

    def release_later(self, entry):
        """
        Take back an entry in a finalizer, which must not wait for anything.
        Its connection is closed, for nobody knows what it was used for last.
        """
        self._pool.release_later(entry)

    def _discard_after(self, pending, entry):
        # A function in release() itself would make all that is done there with
        # these variables slower.
        pending.add_done_callback(lambda future: self._discard_soon(entry))

    def _discard_soon(self, entry):
        workers.run(functools.partial(self._pool.discard, entry))

    def _validate_loop(self, loop):
        """
        Raise PoolError unless the running loop is the pool's, and PoolClosed
        if it can't be used anymore.
        """
        if loop is None:
            raise PoolError(
                "The pool of '%s' for tasks was used without a running event loop. "
                "Use django.db.pool.pools in threads." % self.name
            )
        if self._loop is CLOSED:
            raise PoolClosed(
                "The pool of '%s' is closed. Make a new one, or close it later."
                % self.name
            )
        if self._loop is UNBOUND:
            self._loop = loop
        elif self._loop is not loop:
            raise PoolError(
                "This pool of '%s' belongs to another event loop. Use "
                "django.db.pool.apools['%s'], which finds the pool of the running "
                "loop." % (self.name, self.name)
            )

    async def _prepare(self, entry, prepare):
        """
        Have a lent entry prepared by a thread. If that raises something, or
        the caller is cancelled, the entry isn't the caller's anymore.
        """

        def try_to_prepare():
            try:
                prepare()
            except Exception as e:
                return e

        def give_up(error):
            self._leave_loop(entry)
            self._discard_soon(entry)

        future = call_in_thread(try_to_prepare, give_up=give_up)
        try:
            error = await future
        except GeneratorExit:
            # As in _ask().
            raise
        except BaseException:
            if future.done() and not future.cancelled():
                give_up(None)
            raise
        if error is not None:
            give_up(error)
            raise error

    async def _is_healthy(self, entry, now):
        """
        Return whether an owned entry can be lent. If it can't, the caller must
        have it replaced. If the caller is cancelled, the entry isn't its
        anymore.
        """
        is_healthy = self._pool._look_at(entry, now)
        return await self._ask(entry) if is_healthy is None else is_healthy

    async def _ask(self, entry):
        """Do what _is_healthy() does, by a round trip."""

        def give_up(is_healthy):
            self._give_up(entry, is_healthy)

        future = call_in_thread(self._pool._ask, entry, give_up=give_up)
        try:
            return await future
        except GeneratorExit:
            # The task is being collected, and its entry counts as lost. Here
            # nothing may be locked.
            raise
        except BaseException:
            if future.done() and not future.cancelled():
                # It was cancelled on its way back.
                give_up(future.exception() is None and future.result())
            raise

    async def _wait_for_entry(self, timeout, loop, unhealthy=None):
        """Acquire by getting in line, in the place of an unhealthy entry."""
        pool = self._pool
        core = pool._core
        if core.inbox:
            self._settle()
        timeout = pool._timeout if timeout is None else timeout
        now = pool._clock()
        deadline = now + timeout
        waiter = TaskWaiter(self, loop, deadline)
        refusal = None
        with pool._lock:
            # First of all: what is opened next is for those in line.
            try:
                core.enqueue(waiter, now)
            except PoolError as e:
                refusal = e
            orders = pool._replace_locked(unhealthy, now)
        try:
            self._execute(orders)
            if refusal is not None:
                raise refusal
            if waiter.entry is None and waiter.error is None:
                housekeeper.expect(pool, now + WAITING_INTERVAL)
            while True:
                if waiter.entry is None and waiter.error is None:
                    if deadline > now:
                        self._expect(deadline, now, loop)
                        await waiter.future
                    if waiter.entry is None and waiter.error is None:
                        if waiter.queued_at < deadline and pool._collect_garbage():
                            self._settle()
                        if not pool._is_served_at_deadline(waiter):
                            raise pool._timeout_error(timeout)
                if waiter.error is not None:
                    raise pool._own_error(waiter.error)
                # From here on it isn't withdraw() that gives it back.
                entry, waiter.entry = waiter.entry, None
                # As of the grant: the loop may have come to this task, and
                # with it the time to find out, only much later.
                is_healthy = pool._look_at(entry, waiter.granted_at)
                if is_healthy or is_healthy is None and await self._ask(entry):
                    break
                earlier, waiter = waiter, TaskWaiter(self, loop, deadline)
                now = pool._clock()
                with pool._lock:
                    try:
                        core.enqueue_again(waiter, earlier, now)
                    except PoolError as e:
                        refusal = e
                    orders = pool._replace_locked(entry, now)
                self._execute(orders)
                if refusal is not None:
                    raise refusal
        except GeneratorExit:
            # The task is being collected, as after its loop was closed: what
            # it was granted counts as lost. Here nothing may be locked.
            raise
        except BaseException:
            self._withdraw(waiter)
            raise
        entry.acquired_at = pool._clock()
        entry.uses += 1
        if pool.options.leak_threshold is not None:
            pool._record_holder(entry, 3)
        return entry

    def _expect(self, deadline, now, loop):
        """
        Have the task that is about to wait woken up at its deadline. One timer
        is set for all that wait, for few of them ever need it.
        """
        if deadline < self._next_deadline:
            if self._timer is not None:
                self._timer.cancel()
            self._next_deadline = deadline
            self._timer = loop.call_later(deadline - now, self._wake_late, loop)

    def _wake_late(self, loop):
        """Wake up those whose time is up, and set the timer for the others."""
        pool = self._pool
        self._timer, self._next_deadline = None, inf
        now = pool._clock()
        due = inf
        with pool._lock:
            waiters = list(pool._core.waiters)
        for waiter in waiters:
            if type(waiter) is TaskWaiter and waiter.pool is self:
                if waiter.deadline <= now:
                    waiter.wake()
                else:
                    due = min(due, waiter.deadline)
        if due < inf:
            self._expect(max(due, now + SHORTEST_PAUSE), now, loop)

    def _withdraw(self, waiter):
        """Take a waiter out of the line, giving up what it was granted."""
        pool = self._pool
        with pool._lock:
            entry = pool._core.withdraw(waiter, pool._clock())
            waiter.entry = None
        if entry is not None and entry.connection is not None:
            # Nobody has touched it.
            self._give_up(entry, True)

    def _take_back_grant(self, waiter):
        """
        Give up what a task was granted whose loop is closed. Any thread may
        call this.
        """
        # The others are taken out of the line at once, or each would be
        # granted the entry, and give it up within the call of the one before.
        self._withdraw_of_closed_loops()
        self._withdraw(waiter)

    def _withdraw_of_closed_loops(self):
        """Take those out of the line whose loops are closed."""
        pool = self._pool
        core = pool._core
        now = pool._clock()
        with pool._lock:
            for waiter in list(core.waiters):
                if (
                    isinstance(waiter, TaskWaiter)
                    and waiter.future.get_loop().is_closed()
                ):
                    core.withdraw(waiter, now)

    def _give_up(self, entry, is_healthy):
        """Give up an owned entry that nobody has used since it was idle."""
        pool = self._pool
        core = pool._core
        now = pool._clock()
        with pool._lock:
            if is_healthy and pool.supports_reuse and core.is_lendable(entry, now):
                # Whoever is next may have it.
                core.idle.append(entry)
                orders = core.settle(now)
            else:
                orders = pool._replace_locked(entry, now)
        self._execute(orders)

    def _settle(self):
        with self._pool._lock:
            orders = self._pool._core.settle(self._pool._clock())
        self._execute(orders)

    def _execute(self, orders):
        """Carry out orders, leaving what may block to a thread."""
        for waiter in orders.settled:
            waiter.notify()
        orders.settled = ()
        for _ in range(orders.connects):
            self._pool._start_connecting()
        orders.connects = 0
        if (
            orders.closing
            or orders.returned
            or orders.lost
            or orders.leaks
            or orders.gave_up is not None
        ):
            workers.run(functools.partial(self._pool._execute, orders))

    # Steering.

    async def open(self, wait=False, timeout=30.0):
        """Do what ConnectionPool.open() does."""
        self._validate_loop(_get_running_loop())
        await call_in_thread(self._pool.open)
        if wait:
            await self.wait(timeout)

    async def wait(self, timeout=30.0):
        """Do what ConnectionPool.wait() does."""
        self._validate_loop(_get_running_loop())
        await call_in_thread(self._pool.wait, timeout)

    async def close(self, timeout=5.0):
        """
        Close the pool for good, as ConnectionPool.close() does. If it lends
        another pool's connections, that one stays open.
        """
        loop, self._loop = self._loop, CLOSED
        if not self._is_owner:
            # Whoever asks for the loop's pool again gets a new one.
            self._pool.loops.pop(loop, None)
            return True
        return await call_in_thread(self._pool.close, timeout)

    async def drain(self):
        """Do what ConnectionPool.drain() does."""
        await call_in_thread(self._pool.drain)

    async def resize(self, min_size, max_size):
        """Do what ConnectionPool.resize() does."""
        await call_in_thread(self._pool.resize, min_size, max_size)

    async def check(self):
        """Do what ConnectionPool.check() does."""
        await call_in_thread(self._pool.check)

    async def suspend(self):
        """Do what ConnectionPool.suspend() does."""
        self._pool.suspend()

    async def resume(self):
        """Do what ConnectionPool.resume() does."""
        with self._pool._lock:
            orders = self._pool._core.resume(self._pool._clock())
        self._execute(orders)

    def stats(self):
        """Return a PoolStats, of threads and tasks together."""
        return self._pool.stats()
