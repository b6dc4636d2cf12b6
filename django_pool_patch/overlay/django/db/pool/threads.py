"""The pool for threads: a lock, waiting, connecting and closing, logging."""

import copy
import gc
import logging
import sys
import threading
import traceback
from _thread import allocate_lock, get_ident
from collections import deque
from math import inf
from time import monotonic

from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

from .base import BaseConnector, BasePool, check_by, reset_by
from .core import WAITING_INTERVAL, PoolCore, Waiter
from .exceptions import PoolClosed, PoolError, PoolTimeout
from .housekeeping import housekeeper
from .workers import workers

logger = logging.getLogger("django.db.pool")

# Without a GIL the core's lock-free path isn't proved to be safe.
LOCK_ALWAYS = not getattr(sys, "_is_gil_enabled", lambda: True)()

# Seconds between two garbage collections made for callers about to give up.
COLLECTION_PAUSE = 10.0
_next_collection = -inf

# Seconds after its return for which a connection isn't polled before it's lent
# again. Polling lets go of the GIL, so that where connections pass
# from hand to hand, each of them would come to belong to a thread that waits
# for the GIL.
TRUST_IN_RETURNED = 0.001

# Seconds that closing dead connections may wait for the opening of a new one.
CLOSING_DELAY = 0.01

# Seconds for which a connection that was just opened isn't asked for a sign of
# life.
TRUST_IN_NEW = 1.0

# How many holders a PoolTimeout names.
NAMED_HOLDERS = 3


class ThreadWaiter(Waiter):
    """A thread in line. The lock is released when it has been served."""

    __slots__ = ("_served",)

    def __init__(self):
        super().__init__()
        self._served = allocate_lock()
        self._served.acquire()

    def notify(self):
        self._served.release()

    def wait(self, seconds):
        """Return whether the thread was served within that time."""
        if seconds <= 0:
            return self._served.acquire(blocking=False)
        return self._served.acquire(timeout=min(seconds, threading.TIMEOUT_MAX))


class ConnectionPool(BasePool):
    """
    A bounded pool of connections for threads.

    See BasePool for the methods and PoolOptions for the keyword arguments.
    Nothing is opened before open() or the first acquire(). Connections are
    opened in threads of their own, so that no caller waits for longer than it
    wants to, and none takes a connection with it when it gives up. An entry
    whose owner is interrupted, by KeyboardInterrupt say, comes back like one
    that was lost.

    `clock` returns seconds, and must be monotonic. It's for tests.
    """

    supports_release_later = True

    def __init__(self, connector, *, name="default", clock=monotonic, **options):
        super().__init__(connector, name=name, **options)
        options = self.options
        self._clock = clock
        self._timeout = inf if options.timeout is None else options.timeout
        self._ping_after = inf
        self._watches = False
        self._check = self._find_check(options.check)
        self._is_clean, self._reset = self._find_reset(options.reset)
        if options.leak_threshold is not None:
            self._is_clean_at_all = self._is_clean
            self._is_clean = self._is_clean_and_reported
        # Guards the core where it says "locked". No I/O, no hook and no
        # logging happens while it's held.
        self._lock = threading.Lock()
        # Notified when connections have been opened or closed.
        self._changed = threading.Condition(self._lock)
        # Entries that aren't the core's yet, for forked children to abandon.
        self._opening = set()
        # Retired entries that housekeeping is to close.
        self._unclosed = deque()
        # Whether it's still to be logged that a connection was found dead.
        self._has_news_of_death = False
        self._core = self._make_core()
        self._next_reclaim = -inf
        # What lends its connections to the tasks of event loops, by loop.
        self.loops = {}

    def __del__(self):
        # Unless making the pool has failed, or is interrupted.
        if (core := getattr(self, "_core", None)) is not None:
            core.leave_inbox()

    def _make_core(self):
        # The fast path of acquire() doesn't note who the holder is.
        lock_always = LOCK_ALWAYS or self.options.leak_threshold is not None
        return PoolCore(self.options, name=self.name, lock_always=lock_always)

    def _find_check(self, option):
        """Return what asks a connection for a sign of life, or None."""
        connector = self.connector
        if option == "off":
            return None
        if option == "auto":
            self._watches = True
            if type(connector).check is not BaseConnector.check:
                self._ping_after = connector.ping_after
            return connector.check
        self._ping_after = 0.0
        if option == "ping":
            return connector.check
        return check_by(self._resolve(option))

    def _find_reset(self, option):
        """
        Return two callables that take an entry: what says that it needs no
        cleaning (None if none ever does), and what cleans it.
        """
        connector = self.connector
        if option == "auto":
            is_clean = connector.is_clean
            if type(connector).is_clean is BaseConnector.is_clean:
                is_clean = None
            return is_clean, connector.reset
        if option == "always":
            return self._never_clean, self._reset_fully
        if option == "rollback":
            return self._never_clean, self._roll_back
        return self._never_clean, reset_by(self._resolve(option), connector)

    def _resolve(self, option):
        """Return the callable that an option is, or names."""
        if callable(option):
            return option
        try:
            resolved = import_string(option)
        except ImportError as e:
            raise ImproperlyConfigured(
                "The pool of '%s' can't import %r: %s. Install its package, or "
                "correct the path." % (self.name, option, e)
            ) from e
        if not callable(resolved):
            raise ImproperlyConfigured(
                "The pool of '%s' can't call %r. Name a function that takes the "
                "driver's connection." % (self.name, option)
            )
        return resolved

    @staticmethod
    def _never_clean(entry):
        return False

    def _reset_fully(self, entry):
        return self.connector.reset(entry, full=True)

    def _roll_back(self, entry):
        self.connector.rollback(entry)
        return self.connector.is_clean(entry) or self.connector.reset(entry)

    # Lending. The fast paths are written out in full: each call made here is
    # paid at every request.

    def acquire(self, timeout=None):
        core = self._core
        if not core.contended:
            try:
                entry = core.idle.pop()
            except IndexError:
                pass
            else:
                now = self._clock()
                # Polling is what _look_at() does most often. What is lent
                # without it comes first, by way of the fewest jumps.
                if entry.generation != core.generation or (
                    now >= entry.fresh_until
                    and (
                        entry.poll is None
                        or now - entry.fresh_until >= self._ping_after
                        or now >= entry.expires_at
                        or entry.poll(0)
                    )
                    and not self._is_healthy(entry, now)
                ):
                    return self._wait_for_entry(timeout, entry)
                entry.acquired_at = now
                entry.uses += 1
                return entry
        return self._wait_for_entry(timeout)

    def release(self, entry):
        core = self._core
        acquired_at = entry.acquired_at
        if acquired_at is None or entry.core is not core:
            return self._refuse(entry)
        is_clean = self._is_clean
        if is_clean is not None:
            try:
                can_be_used = is_clean(entry)
            except Exception:
                # Drivers raise when asked about a connection that was closed.
                can_be_used = False
            if not can_be_used and not self._clean(entry):
                return self.discard(entry)
        if entry.generation != core.generation:
            return self.discard(entry)
        entry.idle_since = now = self._clock()
        fresh_until = now + entry.trust
        if fresh_until > entry.expires_at:
            fresh_until = entry.expires_at
            if now >= fresh_until:
                return self.discard(entry)
        entry.fresh_until = fresh_until
        entry.acquired_at = None
        entry.used_seconds += now - acquired_at
        core.idle.append(entry)
        if core.contended:
            self._settle()

    def discard(self, entry):
        core = self._core
        acquired_at = entry.acquired_at
        if acquired_at is None or entry.core is not core:
            return self._refuse(entry)
        now = self._clock()
        entry.acquired_at = None
        entry.used_seconds += now - acquired_at
        if entry.leak_reported:
            self._report_return(entry, now - acquired_at)
        with self._lock:
            orders = core.discard(entry, now)
        self._execute(orders)

    def release_later(self, entry):
        # Whoever finds nothing idle looks into the inbox before anything else.
        entry.is_return = True
        entry.core.inbox.append(entry)

    def count_pin(self, reason):
        with self._lock:
            pins = self._core.pins
            pins[reason] = pins.get(reason, 0) + 1

    def _refuse(self, entry):
        """Explain why an entry can't be given back."""
        if entry.connection is None and entry.core is not self._core:
            # A forked child gives back what its parent borrowed. It has been
            # abandoned already.
            return
        raise PoolError(
            "%r isn't lent by the pool of '%s': it was given back before, or "
            "belongs to another pool. Release each acquired entry once."
            % (entry, self.name)
        )

    def _wait_for_entry(self, timeout, unhealthy=None):
        """Acquire by getting in line, in the place of an unhealthy entry."""
        core = self._core
        if core.inbox:
            self._settle()
        timeout = self._timeout if timeout is None else timeout
        waiter = ThreadWaiter()
        now = self._clock()
        deadline = now + timeout
        refusal = None
        with self._lock:
            # First of all: what is opened next is for those in line.
            try:
                core.enqueue(waiter, now)
            except PoolError as e:
                refusal = e
            orders = self._replace_locked(unhealthy, now)
        try:
            self._execute(orders)
            if refusal is not None:
                raise refusal
            if waiter.entry is None and waiter.error is None:
                self._prepare_to_wait(now)
            while True:
                if not self._is_served(waiter, deadline):
                    raise self._timeout_error(timeout)
                if waiter.error is not None:
                    raise self._own_error(waiter.error)
                entry = waiter.entry
                # As of the grant: this thread may have got the GIL, and with
                # it the time to find out, only much later.
                if self._is_healthy(entry, waiter.granted_at):
                    break
                # A new one, for the notification of the first may still be
                # on its way when the grant was found at the deadline.
                earlier, waiter = waiter, ThreadWaiter()
                now = self._clock()
                with self._lock:
                    try:
                        core.enqueue_again(waiter, earlier, now)
                    except PoolError as e:
                        refusal = e
                    orders = self._replace_locked(entry, now)
                self._execute(orders)
                if refusal is not None:
                    raise refusal
        except BaseException:
            self._withdraw(waiter)
            raise
        entry.acquired_at = self._clock()
        entry.uses += 1
        if self.options.leak_threshold is not None:
            self._record_holder(entry, 3)
        return entry

    def _prepare_to_wait(self, now):
        """See to it that waiting isn't in vain."""
        housekeeper.expect(self, now + WAITING_INTERVAL)
        # Housekeeping will do it again, but what is lost already should not
        # be waited for.
        if now >= self._next_reclaim:
            self._next_reclaim = now + WAITING_INTERVAL
            self._reclaim()

    def _is_served(self, waiter, deadline):
        """Return whether the waiter was granted an entry, or an error."""
        if waiter.wait(deadline - self._clock()):
            return True
        if waiter.queued_at < deadline and self._collect_garbage():
            self._settle()
        return self._is_served_at_deadline(waiter)

    def _is_served_at_deadline(self, waiter):
        """
        Take a waiter out of the line whose time is up. Return whether it was
        granted an entry, or an error, nevertheless.
        """
        # Notified or not: a grant found at the deadline is as good.
        with self._lock:
            entry = self._core.withdraw(waiter, self._clock())
            if entry is None and waiter.error is None:
                self._core.timeouts += 1
                return False
        return True

    def _withdraw(self, waiter):
        """Take a waiter out of the line, giving up what it was granted."""
        now = self._clock()
        orders = None
        with self._lock:
            entry = self._core.withdraw(waiter, now)
            if entry is not None and entry.connection is not None:
                # Interrupted, perhaps in the midst of a check.
                orders = self._core.discard(entry, now)
        if orders is not None:
            self._execute(orders)

    def _settle(self):
        with self._lock:
            orders = self._core.settle(self._clock())
        self._execute(orders)

    def _collect_garbage(self):
        """
        Collect garbage for the sake of lost connections, as a last resort.

        A DatabaseWrapper is part of reference cycles, so what was dropped with
        one comes back only when garbage is collected, which may be long after
        everybody has given up waiting. Return whether it was done.
        """
        global _next_collection
        now = monotonic()
        if now < _next_collection or not gc.isenabled():
            return False
        _next_collection = now + COLLECTION_PAUSE
        gc.collect()
        return True

    @staticmethod
    def _own_error(error):
        """Return an error to raise in one thread of those that share it."""
        try:
            own_error = copy.copy(error)
        except Exception:
            return error
        if type(own_error) is not type(error) or own_error.args != error.args:
            return error
        own_error.__cause__ = error.__cause__
        own_error.__suppress_context__ = error.__suppress_context__
        return own_error.with_traceback(error.__traceback__)

    def _timeout_error(self, timeout):
        with self._lock:
            core = self._core
            stats = core.stats()
            holders = core.longest_holders(NAMED_HOLDERS)
            cause = core.last_error
            is_suspended = core.is_suspended
        error = self._make_timeout_error(
            timeout,
            stats,
            # The caller isn't in line anymore, but it was.
            stats.waiting + 1,
            cause,
            "The pool is suspended. Call resume()." if is_suspended else None,
        )
        if holders:
            error.args = ("%s Held longest: %s." % (error, self._describe(holders)),)
        return error

    def _describe(self, holders):
        """
        Return for how long entries have been held, and by which threads, as
        far as that is known.
        """
        now = self._clock()
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        descriptions = []
        for entry in holders:
            if (acquired_at := entry.acquired_at) is None:
                continue
            description = "%.2f seconds" % (now - acquired_at)
            # Looking it up at each lending would take a tenth of the time.
            holder = entry.holder or self.connector.get_thread_ident(entry)
            if holder is not None:
                description += " by thread %r" % (names.get(holder, holder),)
            descriptions.append(description)
        return ", ".join(descriptions)

    # Health.

    def _is_healthy(self, entry, now):
        """
        Return whether an owned entry can be lent. If it can't, the caller
        must have it replaced.
        """
        is_healthy = self._look_at(entry, now)
        return self._ask(entry) if is_healthy is None else is_healthy

    def _look_at(self, entry, now):
        """
        Return whether an owned entry can be lent, as far as that shows without
        a round trip. None says that only one would tell.
        """
        if entry.generation != self._core.generation or now >= entry.expires_at:
            return False
        fresh_until = entry.fresh_until
        if now < fresh_until or self._check is None:
            return True
        if entry.poll is None:
            return None
        events = entry.poll(0)
        if events and self.connector.is_hung_up(events):
            entry.is_dead = True
            return False
        # Something to read is not yet an end: notices, parameter changes and
        # session tickets come unasked too. A round trip tells, and on a dead
        # connection it fails at once.
        return True if not events and now - fresh_until < self._ping_after else None

    def _ask(self, entry):
        """Return whether an owned entry answers."""
        entry.checks += 1
        is_alive = False
        try:
            is_alive = self._check(entry)
        except Exception as e:
            logger.debug("Pool '%s': check raised %s.", self.name, type(e).__name__)
        if is_alive is None:
            # It can't be asked. Silence is a good sign.
            is_alive = entry.poll is None or not entry.poll(0)
        if is_alive:
            return True
        entry.is_dead = True
        return False

    def _replace_locked(self, entry, now):
        """Retire an owned entry that isn't healthy, if any, and settle."""
        core = self._core
        if entry is None:
            return core.settle(now)
        if entry.is_dead:
            core.check_failures += 1
            if entry.generation == core.generation:
                # What killed this one, a restarted server say, has hardly
                # spared the others.
                return core.invalidate(now, dead=entry)
        return core.discard(entry, now)

    def _clean(self, entry):
        """
        Clean an entry that comes back. Return whether it can be reused. If it
        can't, and something is wrong with it, others may be broken too.
        """
        with self._lock:
            self._core.resets += 1
        try:
            can_be_used = self._reset(entry)
            if can_be_used or can_be_used is None:
                return can_be_used
        except Exception as e:
            logger.warning(
                "Pool '%s': a connection was discarded, for cleaning it raised %s.",
                self.name,
                type(e).__name__,
            )
        with self._lock:
            self._core.distrust()
        return False

    # Carrying out orders, without the lock.

    def _execute(self, orders):
        for waiter in orders.settled:
            waiter.notify()
        closing = orders.closing
        if orders.found_dead:
            # One closed connection makes room for a new one. Those who want
            # that shouldn't wait until all the others are closed.
            self._has_news_of_death = True
            closing = orders.closing[:1]
        for _ in range(orders.connects):
            self._start_connecting()
        for entry in orders.leaks:
            self._report_leak(entry)
        if orders.gave_up is not None:
            self.reconnect_failed(orders.gave_up)
        for entry in closing:
            self._close(entry)
        for entry in orders.returned:
            self._take_back(entry)
        for entry in orders.lost:
            self._report_loss()
            self._take_back(entry)
        if orders.found_dead:
            self._close_later(orders.closing[1:])

    def _close(self, entry):
        """Close a retired entry, and carry out what that makes room for."""
        self._close_connection(entry)
        with self._lock:
            orders = self._core.closed(self._clock())
            self._changed.notify_all()
        self._execute(orders)

    def _close_later(self, entries):
        """
        Have retired entries closed, and their death reported, once the next
        connection has been opened, or by housekeeping, if that takes long.
        """
        self._unclosed.extend(entries)
        if not housekeeper.expect(self, monotonic() + CLOSING_DELAY):
            self._close_unclosed()

    def _close_unclosed(self):
        self._report_death()
        while True:
            try:
                entry = self._unclosed.popleft()
            except IndexError:
                return
            self._close(entry)

    def _report_death(self):
        if self._has_news_of_death:
            self._has_news_of_death = False
            logger.warning(
                "Pool '%s': a connection was found dead; all connections are "
                "replaced.",
                self.name,
            )

    def _close_connection(self, entry):
        connection, entry.connection = entry.connection, None
        # A poll object outlives the descriptor that it watches.
        entry.poll = None
        if connection is None:
            return
        try:
            self.connector.close(connection)
        except Exception as e:
            logger.debug("Pool '%s': close raised %s.", self.name, type(e).__name__)
        else:
            logger.debug("Pool '%s': closed a connection.", self.name)

    def _report_loss(self):
        logger.warning(
            "Pool '%s': a connection came back because its user was gone. Close "
            "connections when a thread or task ends.",
            self.name,
        )

    def _take_back(self, entry):
        """Release an entry from the inbox."""
        if entry.acquired_at is not None:
            if entry.connection_in_loop is None:
                self.release(entry)
            else:
                self._take_back_from_loop(entry)
            return
        # Lost on the way from or to a borrower, by an interrupt, perhaps in
        # the midst of a check.
        with self._lock:
            orders = self._core.discard(entry, self._clock())
        self._execute(orders)

    def _take_back_from_loop(self, entry):
        """Discard what was lent to a task that is gone."""
        pending = self.connector.leave_loop(entry)
        if pending is None:
            self.discard(entry)
        else:
            # A thread is in the midst of its statement.
            pending.add_done_callback(lambda future: self.discard(entry))

    def _start_connecting(self):
        try:
            workers.run(self._connect)
        except RuntimeError:
            # There can be no more threads: too many, or the interpreter is
            # about to exit.
            self._connect()

    def _connect(self):
        """Open a connection, and go on for as long as more are wanted."""
        while self._open_one():
            pass

    def _open_one(self):
        core = self._core
        generation = core.generation
        entry = None
        error = None
        try:
            entry = self._open_entry(core, generation)
        except BaseException as e:
            error = e
            # The password may be among the locals of the driver's frames.
            logger.debug("Pool '%s': connecting failed.", self.name)
        self._report_death()
        now = self._clock()
        with self._lock:
            if entry is None:
                orders = core.connect_failed(error, now)
            else:
                core.connected(entry, now)
                self._opening.discard(entry)
                core.idle.append(entry)
                entry = None
                orders = core.settle(now)
            due = core.next_due(now)
            self._changed.notify_all()
            goes_on = orders.connects > 0
            if goes_on:
                # This thread opens the next one.
                orders.connects -= 1
        housekeeper.expect(self, due)
        self._execute(orders)
        self._close_unclosed()
        return goes_on

    def _open_entry(self, core, generation):
        connector = self.connector
        connection = connector.open()
        entry = core.make_entry(connection, generation, self._clock())
        self._opening.add(entry)
        try:
            connector.configure(entry)
            if self._watches:
                entry.poll = connector.watch(connection)
            entry.trust = trust = self._ping_after
            if entry.poll is not None:
                entry.trust = trust = min(trust, TRUST_IN_RETURNED)
            if entry.poll is None or not self._ping_after:
                # Nobody looks at it before asking it, which would be too soon.
                trust = max(trust, TRUST_IN_NEW)
        except BaseException:
            self._opening.discard(entry)
            self._close_connection(entry)
            raise
        now = self._clock()
        entry.idle_since = now
        entry.fresh_until = min(entry.expires_at, now + trust)
        logger.debug("Pool '%s': opened a connection.", self.name)
        return entry

    def reconnect_failed(self, error):
        """
        Hook: connecting has failed for reconnect_timeout seconds.

        Nothing is tried in the background anymore until somebody asks for a
        connection. Called without the lock, in a thread of the pool's.
        """
        logger.warning(
            "Pool '%s': couldn't connect for %.0f seconds (%s).",
            self.name,
            self.options.reconnect_timeout,
            type(error).__name__,
        )

    # Leaks.

    @staticmethod
    def _record_holder(entry, depth):
        entry.holder = get_ident()
        # Only references to code and line numbers: lines are looked up, and
        # formatted, when there is a leak to report. `depth` leads to the
        # caller of acquire().
        entry.stack = traceback.StackSummary.extract(
            traceback.walk_stack(sys._getframe(depth)), lookup_lines=False
        )

    def _report_leak(self, entry):
        acquired_at = entry.acquired_at
        if acquired_at is None:
            return
        stack = entry.stack or []
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        logger.warning(
            "Pool '%s': a connection is in use for %.2f seconds by thread %r. It "
            "was acquired at (most recent call last):\n%s",
            self.name,
            self._clock() - acquired_at,
            names.get(entry.holder, entry.holder),
            "".join(traceback.StackSummary.from_list(list(stack)[::-1]).format()),
        )

    def _is_clean_and_reported(self, entry):
        """
        Do what tells at each return whether an entry needs no cleaning, and
        report the end of what was reported as a leak.
        """
        if entry.leak_reported:
            self._report_return(entry, self._clock() - entry.acquired_at)
        is_clean = self._is_clean_at_all
        return is_clean is None or is_clean(entry)

    def _report_return(self, entry, seconds):
        entry.leak_reported = False
        logger.warning(
            "Pool '%s': the connection reported as a leak came back after %.2f "
            "seconds.",
            self.name,
            seconds,
        )

    def _reclaim(self):
        """Take back what is lent to users that are gone."""
        with self._lock:
            entries = [
                entry
                for entry in self._core.all_entries()
                if entry.acquired_at is not None
            ]
        for entry in entries:
            if self.connector.reclaim(entry):
                with self._lock:
                    self._core.lost += 1
                self._report_loss()
                self._take_back(entry)

    # Steering.

    def open(self, wait=False, timeout=30.0):
        with self._lock:
            orders = self._core.start(self._clock())
        self._execute(orders)
        if wait:
            self.wait(timeout)

    def wait(self, timeout=30.0):
        deadline = self._clock() + timeout
        self.open()
        with self._lock:
            core = self._core
            while len(core.entries) < core.min_size and not core.is_closed:
                remaining = deadline - self._clock()
                if remaining <= 0:
                    raise PoolTimeout(
                        "The pool of '%s' couldn't open min_size=%d connections "
                        "within %.2f seconds (%d are open). Lower min_size, or see "
                        "the server's log."
                        % (self.name, core.min_size, timeout, len(core.entries))
                    ) from core.last_error
                self._changed.wait(remaining)
            if core.is_closed:
                raise PoolClosed(
                    "The pool of '%s' was closed while waiting for it." % self.name
                )

    def close(self, timeout=5.0):
        deadline = self._clock() + timeout
        with self._lock:
            orders = self._core.close(self._clock())
        self._execute(orders)
        # Nobody else would close what is lent to users that are gone.
        self._reclaim()
        self._close_unclosed()
        with self._lock:
            while not self._is_empty():
                remaining = deadline - self._clock()
                if remaining <= 0:
                    return False
                self._changed.wait(remaining)
        return True

    def _is_empty(self):
        core = self._core
        return not (core.entries or core.connecting or core.closing)

    def drain(self):
        with self._lock:
            orders = self._core.invalidate(self._clock())
        self._execute(orders)

    def resize(self, min_size, max_size):
        # Validates.
        type(self.options)(min_size=min_size, max_size=max_size)
        with self._lock:
            orders = self._core.resize(min_size, max_size, self._clock())
        self._execute(orders)

    def suspend(self):
        with self._lock:
            self._core.suspend()

    def resume(self):
        with self._lock:
            orders = self._core.resume(self._clock())
        self._execute(orders)

    def check(self):
        if self._check is None:
            return
        core = self._core
        for _ in range(len(core.idle)):
            try:
                # From the other end: the hot ones have proved that they live.
                entry = core.idle.popleft()
            except IndexError:
                break
            # What it was trusted for doesn't count.
            entry.fresh_until = -inf
            now = self._clock()
            if self._is_healthy(entry, now):
                entry.fresh_until = min(entry.expires_at, now + entry.trust)
                core.idle.append(entry)
                if core.contended:
                    self._settle()
            else:
                with self._lock:
                    orders = self._replace_locked(entry, now)
                self._execute(orders)
        self._close_unclosed()

    def reap(self):
        self._close_unclosed()
        with self._lock:
            starving = bool(self._core.waiters)
        if starving:
            self._reclaim()
        now = self._clock()
        with self._lock:
            orders = self._core.reap(now)
        self._execute(orders)
        with self._lock:
            return self._core.next_due(now)

    def stats(self):
        with self._lock:
            return self._core.stats()

    def after_fork_in_child(self):
        # The child has one thread, and whoever held the lock is not in it.
        abandoned = getattr(self, "_core", None)
        if abandoned is None:
            # Another thread was making this pool, and is gone.
            return
        # Lost entries may have no weak references anymore.
        entries = [
            *abandoned.all_entries(),
            *abandoned.inbox,
            *self._opening,
            *self._unclosed,
        ]
        self._opening = set()
        self._unclosed = deque()
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._core = self._make_core()
        self._core.is_closed = abandoned.is_closed
        self._core.min_size = abandoned.min_size
        self._core.max_size = abandoned.max_size
        self._core.is_suspended = abandoned.is_suspended
        self._core.contended = (
            abandoned.is_closed or abandoned.is_suspended or self._core.lock_always
        )
        self.loops = {}
        for entry in entries:
            self.connector.abandon(entry)
        self.connector.after_fork_in_child()


class NullPool(ConnectionPool):
    """
    A pool that keeps nothing: each connection is opened when it's asked for
    and closed when it comes back. Their number is bounded all the same.
    """

    supports_reuse = False
    supports_min_size = False

    def __init__(self, connector, **options):
        super().__init__(connector, **options)
        if self.options.min_size:
            raise ImproperlyConfigured(
                "NullPool keeps no connections open. Remove 'min_size', or use "
                "ConnectionPool."
            )
        # Tasks ask this before they hand it to a thread.
        self._is_clean = self._never_clean

    def release(self, entry):
        self.discard(entry)

    def _open_one(self):
        goes_on = super()._open_one()
        try:
            entry = self._core.idle.pop()
        except IndexError:
            return goes_on
        # Whoever it was opened for has given up.
        with self._lock:
            orders = self._core.discard(entry, self._clock())
        self._execute(orders)
        return goes_on
