"""
The rules of a pool: who owns what, who waits, what expires.

There is no I/O here, no lock, no clock and no thread. A shell
(ConnectionPool, say) calls PoolCore and carries out the orders that it gets
back. What the shell owes to the core is written at each method: "locked" means
that the shell holds the pool's lock during the call; what isn't marked so may
run at any time in any thread.

The protocol:

* Popping an entry from `idle` is the only way to own it; appending it is the
  only way to give it up. Everybody pops, the reaper too.
* acquire: when `contended` is false, popping may be tried without the lock.
  Otherwise, or when nothing is idle: lock, enqueue(), settle().
* release: append to `idle`, and only then read `contended`; when it's true:
  lock, settle().
* enqueue() registers the waiter and sets `contended` before settle() looks at
  `idle`. Of a waiter and a releaser at the same time, one sees the other's
  deed, so no wakeup is lost. This needs `append` and the read after it to
  happen in this order for all threads, as they do under the GIL. Without it
  `lock_always` makes everybody take the lock.
* Waiters are served first in, first out, and by hand-over: an entry that a
  waiter is owed never appears in `idle`.
* Finalizers append to `inbox`, and do nothing else to the pool. settle() and
  reap() empty it.
"""

import math
import random
import weakref
from collections import OrderedDict, deque
from itertools import count

from .exceptions import PoolClosed, PoolFull
from .stats import Histogram, PoolStats

# How many connections may be opened at the same time. A growing pool stops
# growing when its waiters have been served, and what is being opened then is
# not wanted anymore: this number bounds the waste.
MAX_CONNECTING = 3

# Seconds for which somebody has to wait before more than one connection is
# opened at a time while there are others, which may serve all sooner.
GROWTH_DELAY = 0.1

# Seconds before connecting is tried again in the background after it failed
# once; doubled at each further failure up to the maximum.
RETRY_DELAY = 0.5
MAX_RETRY_DELAY = 30.0

# Seconds between looks for lost connections while callers are waiting.
WAITING_INTERVAL = 0.1


class Entry:
    """
    A driver's connection, ready to use, and what is known about it.

    One party at a time owns an entry, and only the owner writes to it. The
    pool keeps idle entries alive, a borrower those it has borrowed: an entry
    that its borrower drops comes back through the pool's inbox.

    * connection: the driver's connection; None once it's closed.
    * facts: what the connector learned about the server and the session.
    * lessee: weak reference to who uses the connection, if that is known.
    * connection_in_loop: what the tasks of an event loop use the connection
      by, while it's lent to one of them; otherwise None.
    """

    __slots__ = (
        "connection",
        "core",
        "serial",
        "generation",
        "expires_at",
        "fresh_until",
        "trust",
        "idle_since",
        "poll",
        "acquired_at",
        "holder",
        "stack",
        "leak_reported",
        "is_dead",
        "is_return",
        "uses",
        "checks",
        "used_seconds",
        "facts",
        "session",
        "lessee",
        "connection_in_loop",
        "__weakref__",
    )

    def __init__(self, connection, core, serial, generation, expires_at):
        self.connection = connection
        self.core = core
        self.serial = serial
        self.generation = generation
        self.expires_at = expires_at
        # Until then it's lent without even a look at whether it lives.
        self.fresh_until = expires_at
        # Seconds for which it's fresh after its return.
        self.trust = 0.0
        self.idle_since = None
        # Bound method poll() of a select.poll object that watches the
        # connection's socket, or None.
        self.poll = None
        # When it was lent; None while it's the pool's.
        self.acquired_at = None
        # Identifier of the thread that it was lent to, and where it was
        # acquired, when leaks are looked for.
        self.holder = None
        self.stack = None
        self.leak_reported = False
        # Whether a check has failed.
        self.is_dead = False
        # Whether a finalizer gave it back, and it's not lost in the inbox.
        self.is_return = False
        # What happened to it, counted by whoever owns it.
        self.uses = 0
        self.checks = 0
        self.used_seconds = 0.0
        self.facts = {}
        # The connector's own: what it needs to check, reset and configure.
        self.session = None
        self.lessee = None
        self.connection_in_loop = None

    def __repr__(self):
        # The driver's connection isn't shown: its repr may tell secrets.
        return "<%s serial=%d generation=%d uses=%d>" % (
            type(self).__name__,
            self.serial,
            self.generation,
            self.uses,
        )

    def __del__(self):
        # Whoever drops an entry that still has its connection has lost it.
        # This runs at any time in any thread, so nothing may be locked here.
        if self.connection is not None:
            self.core.inbox.append(self)

    def successor(self):
        """
        Return an entry that takes over the connection.

        Python doesn't call __del__() again for an entry that was revived in
        it, so a lost entry has to be replaced by one that can be lost anew.
        """
        entry = type(self)(
            self.connection, self.core, self.serial, self.generation, self.expires_at
        )
        for name in (
            "trust",
            "poll",
            "acquired_at",
            "holder",
            "stack",
            "leak_reported",
            "uses",
            "checks",
            "used_seconds",
            "facts",
            "session",
            "connection_in_loop",
        ):
            setattr(entry, name, getattr(self, name))
        self.connection = None
        return entry


class Waiter:
    """
    A caller that waits for an entry.

    The core sets `entry` or `error`. The shell's subclass adds notify(), which
    wakes the caller and is called without the lock.
    """

    __slots__ = ("entry", "error", "queued_at", "granted_at", "ticket")

    def __init__(self):
        self.entry = None
        self.error = None
        self.queued_at = None
        self.granted_at = None
        # Its place in the order of arrival.
        self.ticket = None

    def notify(self):
        raise NotImplementedError("subclasses of Waiter must provide a notify() method")


class Orders:
    """
    What the shell has to do once it has released the lock.

    * settled: waiters to notify; each has an entry or an error.
    * connects: how many connections to open, each ending in connected() or
      connect_failed().
    * closing: entries whose connections to close, each ending in closed().
    * returned: entries to give back, for a finalizer couldn't.
    * lost: the same, of entries that came back by themselves.
    * leaks: entries in use for longer than leak_threshold.
    * gave_up: the error that ended connecting in the background, or None.
    * found_dead: whether a dead connection has invalidated all others.
    """

    # Most are of nothing, or of one waiter.
    settled = ()
    connects = 0
    closing = ()
    returned = ()
    lost = ()
    leaks = ()
    gave_up = None
    found_dead = False

    def extend(self, later):
        """Add what is to do after all this. Return these orders."""
        self.settled += later.settled
        self.connects += later.connects
        self.closing += later.closing
        self.returned += later.returned
        self.lost += later.lost
        self.leaks += later.leaks
        self.gave_up = self.gave_up or later.gave_up
        self.found_dead = self.found_dead or later.found_dead
        return self


class PoolCore:
    """
    Keep the books of one pool.

    `options` is a PoolOptions, `name` what messages call the pool.
    `lock_always` is for interpreters without a GIL, and for shells that note
    more at each acquire() than can be done without the lock. `jitter` returns
    numbers between 0 and 1. All times are in seconds on one monotonic clock,
    which callers read.
    """

    # Faster than a dict, which so many attributes would be kept in.
    __slots__ = (
        "name",
        "min_size",
        "max_size",
        "max_waiting",
        "max_lifetime",
        "max_idle",
        "leak_threshold",
        "reconnect_timeout",
        "lock_always",
        "jitter",
        "idle",
        "inbox",
        "entries",
        "waiters",
        "contended",
        "generation",
        "connecting",
        "closing",
        "valid",
        "is_started",
        "is_suspended",
        "is_closed",
        "_serials",
        "_tickets",
        "failures",
        "failing_since",
        "last_error",
        "retry_at",
        "opened",
        "closed_count",
        "timeouts",
        "refused",
        "lost",
        "resets",
        "check_failures",
        "connect_errors",
        "pins",
        "waits",
        "_past_uses",
        "_past_reuses",
        "_past_checks",
        "_past_used_seconds",
    )

    def __init__(
        self, options, *, name="default", lock_always=False, jitter=random.random
    ):
        self.name = name
        self.min_size = options.min_size
        self.max_size = math.inf if options.max_size is None else options.max_size
        self.max_waiting = options.max_waiting
        self.max_lifetime = options.max_lifetime
        self.max_idle = options.max_idle
        self.leak_threshold = options.leak_threshold
        self.reconnect_timeout = options.reconnect_timeout
        self.lock_always = lock_always
        self.jitter = jitter

        # Last in, first out: few connections stay hot, the others may shrink.
        self.idle = deque()
        # Lost entries, put there by their finalizers.
        self.inbox = deque()
        # All open entries by serial: weak references to them, and strong ones
        # to what they hold. When garbage that an entry is part of is
        # collected, the entry comes back, but the finalizers of all the rest
        # run nevertheless. Drivers close connections in theirs. Locked.
        self.entries = {}
        # Callers in line; an ordered set. Locked.
        self.waiters = OrderedDict()
        # Whether the lock has to be taken to acquire, and after releasing.
        # Written when locked, read at any time.
        self.contended = lock_always
        # Entries of another generation are closed instead of lent.
        self.generation = 0
        # What follows is locked.
        self.connecting = 0
        self.closing = 0
        # How many of the entries are of the current generation.
        self.valid = 0
        self.is_started = False
        self.is_suspended = False
        self.is_closed = False
        self._serials = count(1)
        self._tickets = count(1)
        # Consecutive failures to connect, since when, the last of them, and
        # when to try again unasked.
        self.failures = 0
        self.failing_since = None
        self.last_error = None
        self.retry_at = -math.inf
        # Counters. The borrower of an entry counts in the entry; what is
        # counted here is counted when locked.
        self.opened = 0
        self.closed_count = 0
        self.timeouts = 0
        self.refused = 0
        self.lost = 0
        self.resets = 0
        self.check_failures = 0
        self.connect_errors = 0
        self.pins = {}
        self.waits = Histogram()
        # The sums of entries that are no more.
        self._past_uses = 0
        self._past_reuses = 0
        self._past_checks = 0
        self._past_used_seconds = 0.0

    # Counting.

    @property
    def size(self):
        """Connections there are or are about to be. Locked."""
        return len(self.entries) + self.connecting

    @property
    def in_use(self):
        """Connections lent, or on their way from or to a borrower. Locked."""
        return max(0, len(self.entries) - len(self.idle))

    @property
    def room(self):
        """How many more connections max_size leaves room for. Locked."""
        # What is about to be closed still exists at the server.
        return self.max_size - len(self.entries) - self.connecting - self.closing

    def all_entries(self):
        """Return the open entries that exist, in use or not. Locked."""
        return [
            entry for ref, *_ in self.entries.values() if (entry := ref()) is not None
        ]

    def _register(self, entry):
        self.entries[entry.serial] = (
            weakref.ref(entry),
            entry.connection,
            entry.session,
        )

    def stats(self):
        """Return a PoolStats. Locked."""
        uses = self._past_uses
        reuses = self._past_reuses
        checks = self._past_checks
        used_seconds = self._past_used_seconds
        for entry in self.all_entries():
            uses += entry.uses
            reuses += max(0, entry.uses - 1)
            checks += entry.checks
            used_seconds += entry.used_seconds
        wait_counts = list(self.waits.snapshot())
        # Whoever was served on the spot waited for less than any bound.
        wait_counts[0] += max(0, uses - sum(wait_counts))
        idle = len(self.idle)
        in_use = self.in_use
        return PoolStats(
            size=idle + in_use + self.connecting,
            idle=idle,
            in_use=in_use,
            connecting=self.connecting,
            waiting=len(self.waiters),
            min_size=self.min_size,
            max_size=None if self.max_size == math.inf else self.max_size,
            acquired=uses,
            reused=reuses,
            opened=self.opened,
            closed=self.closed_count,
            timeouts=self.timeouts,
            refused=self.refused,
            lost=self.lost,
            resets=self.resets,
            checks=checks,
            check_failures=self.check_failures,
            connect_errors=self.connect_errors,
            pins=tuple(sorted(self.pins.items())),
            wait_seconds=self.waits.total,
            use_seconds=used_seconds,
            wait_counts=tuple(wait_counts),
        )

    # Waiting. All locked.

    def enqueue(self, waiter, now):
        """
        Put a caller in line. settle() must follow under the same lock.

        Raise PoolClosed, or PoolFull when max_waiting callers that no new
        connection could serve are waiting already.
        """
        self._validate_open()
        served_by_growth = self.max_size - len(self.entries)
        if (
            self.max_waiting
            and len(self.waiters) >= self.max_waiting + served_by_growth
        ):
            self.refused += 1
            raise PoolFull(
                "Refused to wait for a connection to '%s' (max_size=%s, %d waiting "
                "already, max_waiting=%d). Raise max_size or max_waiting, or "
                "shorten transactions."
                % (self.name, self.max_size, len(self.waiters), self.max_waiting)
            )
        self.is_started = True
        waiter.ticket = next(self._tickets)
        waiter.queued_at = now
        self.waiters[waiter] = None
        self.contended = True

    def enqueue_again(self, waiter, earlier, now):
        """
        Put a caller back in line, where it was as the waiter `earlier`: what
        that was granted turned out to be dead. settle() must follow under the
        same lock.

        Raise PoolClosed.
        """
        # That wait isn't over.
        self.waits.retract(earlier.granted_at - earlier.queued_at)
        self._validate_open()
        waiter.ticket = earlier.ticket
        waiter.queued_at = earlier.queued_at
        # Whoever was granted something came before all that are in line, but
        # for those that are back as well.
        before = []
        for other in self.waiters:
            if other.ticket > waiter.ticket:
                break
            before.append(other)
        self.waiters[waiter] = None
        for other in [waiter, *reversed(before)]:
            self.waiters.move_to_end(other, last=False)
        self.contended = True

    def withdraw(self, waiter, now):
        """
        Take a caller out of the line: it gave up, or was cancelled.

        Return the entry that it was granted meanwhile, if any: the caller
        owns it, and has to use it or give it back.
        """
        if waiter in self.waiters:
            del self.waiters[waiter]
            self.waits.total += now - waiter.queued_at
            self._update_contended()
        return waiter.entry

    def _validate_open(self):
        if self.is_closed:
            raise PoolClosed(
                "The pool of '%s' is closed. Make a new one, or close it later."
                % self.name
            )

    def settle(self, now):
        """Serve waiters, and return Orders for what is missing or too much."""
        orders = Orders()
        if self.inbox:
            self._empty_inbox(orders)
        if self.is_closed:
            while (entry := self._pop()) is not None:
                self._retire(entry, orders)
        else:
            while len(self.entries) > self.max_size and self.idle:
                if (entry := self._pop()) is not None:
                    self._retire(entry, orders)
            if not self.is_suspended:
                if self.idle and self.waiters:
                    self._serve(now, orders)
                # At the limit, which is where it's busy, nothing is wanted.
                if self.room > 0:
                    orders.connects = self._connects_wanted(now)
                    self.connecting += orders.connects
        self._update_contended()
        return orders

    def _serve(self, now, orders):
        settled = []
        while self.waiters and (entry := self._pop()) is not None:
            if not self.is_lendable(entry, now):
                self._retire(entry, orders)
                continue
            waiter, _ = self.waiters.popitem(last=False)
            waiter.entry = entry
            waiter.granted_at = now
            self.waits.observe(now - waiter.queued_at)
            settled.append(waiter)
        orders.settled = tuple(settled)

    def _connects_wanted(self, now):
        # The delay after a failure is for the background. It isn't for those
        # who wait when nothing but a new connection could serve them.
        nothing_else = self.waiters and not self.entries and not self.connecting
        if now < self.retry_at and not nothing_else:
            return 0
        limit = MAX_CONNECTING
        if self.waiters:
            wanted = len(self.waiters) - self.connecting
            first = next(iter(self.waiters))
            if self.valid and now - first.queued_at < GROWTH_DELAY:
                limit = 1
        else:
            # What min_size wants has time until nobody waits.
            wanted = self.min_size - self.size if self.is_started else 0
        return max(0, min(wanted, self.room, limit - self.connecting))

    def _update_contended(self):
        self.contended = (
            bool(self.waiters)
            or self.lock_always
            or self.is_closed
            or self.is_suspended
            or len(self.entries) > self.max_size
        )

    # Entries.

    def _pop(self):
        """Return an entry that was idle, or None. It is the caller's now."""
        # Others may pop at the same time without the lock, so asking first
        # whether there is one wouldn't do.
        try:
            return self.idle.pop()
        except IndexError:
            return None

    def is_lendable(self, entry, now):
        """Return whether an entry is neither outdated nor too old."""
        return entry.generation == self.generation and now < entry.expires_at

    def _retire(self, entry, orders):
        """Strike an owned entry off the books; its connection is to close."""
        del self.entries[entry.serial]
        if entry.generation == self.generation:
            self.valid -= 1
        self.closing += 1
        self._past_uses += entry.uses
        self._past_reuses += max(0, entry.uses - 1)
        self._past_checks += entry.checks
        self._past_used_seconds += entry.used_seconds
        orders.closing += (entry,)

    def discard(self, entry, now):
        """Give up an owned entry that must not be used again. Locked."""
        orders = Orders()
        # Somebody may have been interrupted in doing this.
        if entry.serial in self.entries:
            self._retire(entry, orders)
        return orders.extend(self.settle(now))

    def closed(self, now):
        """Take note that one connection of `closing` is closed. Locked."""
        self.closing -= 1
        self.closed_count += 1
        return self.settle(now)

    def _empty_inbox(self, orders):
        while True:
            try:
                entry = self.inbox.popleft()
            except IndexError:
                return
            if entry.connection is None:
                # One finalizer gave it back, and its own took it for lost, in
                # whichever order the collector came to them.
                continue
            is_return = entry.is_return
            entry = entry.successor()
            if entry.serial in self.entries:
                self._register(entry)
                if is_return:
                    orders.returned += (entry,)
                else:
                    self.lost += 1
                    orders.lost += (entry,)
            else:
                # It was to be closed, and whoever should have done it was
                # interrupted.
                orders.closing += (entry,)

    # Connecting. All locked.

    def make_entry(self, connection, generation, now):
        """
        Return an Entry for a connection that was begun in `generation`.

        Nothing knows of it before connected(). This one needn't be locked.
        """
        expires_at = math.inf
        if self.max_lifetime is not None:
            # Spread out, lest connections opened together die together.
            expires_at = now + self.max_lifetime * (1 - 0.1 * self.jitter())
        return Entry(connection, self, next(self._serials), generation, expires_at)

    def connected(self, entry, now):
        """
        Take in a new entry. The caller owns it, appends it to `idle`, and then
        calls settle().
        """
        self.connecting -= 1
        self.opened += 1
        self.failures = 0
        self.failing_since = None
        self.last_error = None
        self.retry_at = -math.inf
        self._register(entry)
        if entry.generation == self.generation:
            self.valid += 1

    def connect_failed(self, error, now):
        """
        Take note that a connection couldn't be opened.

        When nothing else could serve them, those who wait get the error now
        rather than a timeout later. Otherwise they go on waiting for what is
        in use, and connecting is tried again after a while.
        """
        self.connecting -= 1
        self.connect_errors += 1
        self.failures += 1
        self.last_error = error
        if self.failing_since is None:
            self.failing_since = now
        delay = min(RETRY_DELAY * 2 ** min(self.failures - 1, 16), MAX_RETRY_DELAY)
        # Up to a quarter less, lest many processes come back as one.
        self.retry_at = now + delay * (1 - 0.25 * self.jitter())
        orders = Orders()
        if self.waiters and not self.entries and not self.connecting:
            orders.settled = self._fail_waiters(lambda: error)
        if now - self.failing_since >= self.reconnect_timeout:
            # Nothing is tried in the background until somebody asks again.
            self.retry_at = math.inf
            self.failing_since = now
            orders.gave_up = error
        return orders.extend(self.settle(now))

    def _fail_waiters(self, make_error):
        waiters = tuple(self.waiters)
        self.waiters.clear()
        for waiter in waiters:
            waiter.error = make_error()
        return waiters

    # Steering. All locked.

    def start(self, now):
        """Begin to keep min_size connections open."""
        self._validate_open()
        self.is_started = True
        if not self.failures:
            self.retry_at = -math.inf
        return self.settle(now)

    def invalidate(self, now, dead=None):
        """
        Begin a new generation: what is idle now is closed, what is in use or
        being opened is closed when it comes. `dead` is an owned entry that is
        to be closed before all others.
        """
        self.generation += 1
        self.valid = 0
        orders = Orders()
        if dead is not None:
            self._retire(dead, orders)
            orders.found_dead = True
        while (entry := self._pop()) is not None:
            self._retire(entry, orders)
        return orders.extend(self.settle(now))

    def distrust(self):
        """Have what is idle now checked by a round trip before it's lent."""
        for entry in self._idle_snapshot():
            entry.fresh_until = -math.inf

    def resize(self, min_size, max_size, now):
        """Change the limits. What is too much in use goes when it's back."""
        self.min_size = min_size
        self.max_size = math.inf if max_size is None else max_size
        return self.settle(now)

    def suspend(self):
        """Lend nothing from now on: let callers wait."""
        self.is_suspended = True
        self.contended = True

    def resume(self, now):
        """Lend again."""
        self.is_suspended = False
        self.retry_at = -math.inf
        return self.settle(now)

    def leave_inbox(self):
        """
        Have nothing come back anymore, for there is no pool to look after it.

        What is lost is left to its driver, which closes what is collected.
        Otherwise it would be revived for nobody: the entry in the inbox of the
        core that it refers to, garbage to be collected once more.
        """
        self.inbox = deque(maxlen=0)

    def close(self, now):
        """Lend nothing anymore. Those who wait get PoolClosed."""
        self.is_closed = True
        orders = Orders()
        orders.settled = self._fail_waiters(
            lambda: PoolClosed(
                "The pool of '%s' was closed while waiting for a connection."
                % self.name
            )
        )
        return orders.extend(self.settle(now))

    # Housekeeping. All locked.

    def _idle_snapshot(self):
        """Return a list of what is idle about now."""
        while True:
            # Iterating fails when another thread pops or appends meanwhile.
            try:
                return list(self.idle)
            except RuntimeError:
                continue

    def reap(self, now):
        """Retire what is too old or idle for too long, and settle."""
        orders = Orders()
        # The first is idle for longest.
        for entry in self._idle_snapshot():
            if self._is_superfluous(entry, now):
                try:
                    self.idle.remove(entry)
                except ValueError:
                    # Somebody borrowed it meanwhile.
                    continue
                self._retire(entry, orders)
        if self.leak_threshold is not None:
            self._find_leaks(now, orders)
        return orders.extend(self.settle(now))

    def _is_superfluous(self, entry, now):
        return not self.is_lendable(entry, now) or (
            self.max_idle is not None
            and self.size > self.min_size
            and now - entry.idle_since >= self.max_idle
        )

    def _find_leaks(self, now, orders):
        for entry in self.all_entries():
            acquired_at = entry.acquired_at
            if (
                acquired_at is not None
                and not entry.leak_reported
                and now - acquired_at >= self.leak_threshold
            ):
                entry.leak_reported = True
                orders.leaks += (entry,)

    def next_due(self, now):
        """Return when reap() has something to do, at the latest; or inf."""
        due = math.inf
        for entry in self.all_entries():
            # What is used beyond its time goes when it's back.
            if entry.acquired_at is None or entry.expires_at > now:
                due = min(due, entry.expires_at)
        if self.max_idle is not None and len(self.entries) > self.min_size:
            # What is in use now may become idle right after this.
            since = [entry.idle_since for entry in self._idle_snapshot()]
            due = min(due, min(since, default=now) + self.max_idle)
        if self.leak_threshold is not None and self.entries:
            # What is idle now may be lent, and kept, right after this.
            due = min(due, now + self.leak_threshold / 4)
        if self.waiters:
            due = min(due, now + WAITING_INTERVAL)
        if self.failures and self.is_started and self.size < self.min_size:
            due = min(due, self.retry_at)
        return due

    def longest_holders(self, limit):
        """Return up to `limit` entries in use, the longest held first."""
        held = [
            (acquired_at, entry.serial, entry)
            for entry in self.all_entries()
            if (acquired_at := entry.acquired_at) is not None
        ]
        return [entry for _, _, entry in sorted(held)[:limit]]
