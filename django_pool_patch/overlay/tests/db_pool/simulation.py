"""
A shell around PoolCore without threads: a random walk through interleavings.

Each party is a generator that yields between two steps which other threads
could come between. What a real shell does under its lock happens within one
step. After each step the invariants are checked.
"""

import math
import random
from collections import Counter

from django.db.pool.core import PoolCore, Waiter
from django.db.pool.exceptions import PoolClosed, PoolError
from django.db.pool.options import PoolOptions


class SimulatedWaiter(Waiter):
    __slots__ = ("notified",)

    def __init__(self):
        super().__init__()
        self.notified = False

    def notify(self):
        assert not self.notified, "A waiter was notified twice."
        self.notified = True


class Connection:
    """A connection at the simulated server."""

    def __init__(self):
        self.is_alive = True


class Simulation:
    """
    Walk at random through what can happen to a pool.

    The methods whose names begin with `do_` are the shell. Tests break them
    to show that breaking a rule is noticed.
    """

    core_class = PoolCore
    # Steps after which everybody has to come to rest.
    PERIOD = 100

    def __init__(self, seed, **options):
        self.random = random.Random(seed)
        self.options = PoolOptions(**options)
        self.core = self.core_class(self.options, jitter=self.random.random)
        self.now = 0.0
        self.parties = []
        # Physical connections at the server, whoever owns them.
        self.server = set()
        # The owner of each entry that isn't idle, by connection.
        self.owners = {}
        self.server_is_up = True
        self.events = Counter()

    # The shell.

    def do_acquire(self, timeout):
        """Acquire like ConnectionPool does. Return an entry or None."""
        core = self.core
        contended = core.contended
        yield
        if not contended:
            entry = self.pop()
            yield
            if entry is not None:
                if (yield from self.do_vet(entry)):
                    self.events["fast"] += 1
                    return entry
        waiter = SimulatedWaiter()
        try:
            self.do_enqueue(waiter)
        except PoolError as e:
            self.events[type(e).__name__] += 1
            return None
        deadline = self.now + timeout
        while True:
            yield lambda: waiter.notified or self.now >= deadline
            if not waiter.notified:
                entry = self.do_withdraw(waiter)
                if entry is None and waiter.error is None:
                    self.events["timeout"] += 1
                    return None
            if waiter.error is not None:
                self.events["error"] += 1
                return None
            entry = waiter.entry
            if (yield from self.do_vet(entry)):
                self.events["waited"] += 1
                return entry
            earlier, waiter = waiter, SimulatedWaiter()
            try:
                self.core.enqueue_again(waiter, earlier, self.now)
            except PoolClosed:
                return None
            self.settle()

    def do_enqueue(self, waiter):
        self.core.enqueue(waiter, self.now)
        self.settle()

    def do_withdraw(self, waiter):
        return self.core.withdraw(waiter, self.now)

    def do_vet(self, entry):
        core = self.core
        if not core.is_lendable(entry, self.now):
            self.discard(entry)
            return False
        yield
        if entry.connection.is_alive:
            return True
        is_first = entry.generation == core.generation
        self.discard(entry)
        if is_first:
            self.execute(core.invalidate(self.now))
        return False

    def do_release(self, entry):
        entry.acquired_at = None
        entry.idle_since = self.now
        self.append(entry)
        yield
        if self.core.contended:
            yield
            self.settle()

    # Steps.

    def pop(self):
        try:
            entry = self.core.idle.pop()
        except IndexError:
            return None
        return self.own(entry)

    def own(self, entry):
        connection = entry.connection
        assert connection is not None, "A closed entry was lent."
        assert connection not in self.owners, "An entry has two owners."
        self.owners[connection] = entry.serial
        return entry

    def append(self, entry):
        assert self.owners.pop(entry.connection, None), "An idle entry was appended."
        self.core.idle.append(entry)

    def settle(self):
        self.execute(self.core.settle(self.now))
        self.check_after_settling()

    def discard(self, entry):
        entry.acquired_at = None
        self.owners.pop(entry.connection)
        self.execute(self.core.discard(entry, self.now))

    def execute(self, orders):
        tickets = []
        for waiter in orders.settled:
            if waiter.entry is not None:
                self.own(waiter.entry)
                tickets.append(waiter.ticket)
            self.parties.append(self.notifier(waiter))
        assert tickets == sorted(tickets), "Waiters weren't served in order."
        in_line = [waiter.ticket for waiter in self.core.waiters]
        if tickets and in_line:
            assert max(tickets) < min(in_line), "A waiter was passed over."
        for _ in range(orders.connects):
            self.parties.append(self.connector())
        for entry in orders.closing:
            self.parties.append(self.closer(entry))
        for kind in ("returned", "lost"):
            for entry in getattr(orders, kind):
                self.own(entry)
                self.parties.append(self.do_release(entry))
                self.events[kind] += 1

    # Parties.

    def notifier(self, waiter):
        yield
        waiter.notify()

    def connector(self):
        core = self.core
        generation = core.generation
        yield
        # At this moment the server knows of the connection.
        connection = Connection() if self.server_is_up else None
        if connection is not None:
            self.server.add(connection)
        yield
        if connection is None:
            self.events["connect_error"] += 1
            self.execute(core.connect_failed(OSError("down"), self.now))
            return
        entry = core.make_entry(connection, generation, self.now)
        entry.idle_since = self.now
        core.connected(entry, self.now)
        core.idle.append(entry)
        # The real shell holds no entry here either: it would count as lost.
        del entry, connection
        self.settle()

    def closer(self, entry):
        yield
        connection, entry.connection = entry.connection, None
        self.server.discard(connection)
        yield
        self.events["closed"] += 1
        self.execute(self.core.closed(self.now))

    def client(self):
        entry = yield from self.do_acquire(self.random.choice([0, 1, 5, 50]))
        if entry is None:
            return
        entry.acquired_at = self.now
        entry.uses += 1
        for _ in range(self.random.randrange(4)):
            yield
        ending = self.random.random()
        if ending < 0.05:
            self.discard(entry)
        elif ending < 0.1:
            # Its borrower is gone; the finalizer does the rest.
            del self.owners[entry.connection]
        elif ending < 0.2:
            # The finalizer of something of its borrower's gives it back. What
            # is collected together has all its finalizers called, the entry's
            # own too, in any order.
            del self.owners[entry.connection]
            finalizers = [lambda: self.release_later(entry), entry.__del__]
            self.random.shuffle(finalizers)
            finalizers[0]()
            yield
            finalizers[1]()
        else:
            yield from self.do_release(entry)

    def release_later(self, entry):
        entry.is_return = True
        self.core.inbox.append(entry)

    def reaper(self):
        yield
        self.execute(self.core.reap(self.now))

    def disturbance(self):
        core = self.core
        yield
        kind = self.random.choice(["kill", "down", "drain", "resize", "suspend"])
        self.events[kind] += 1
        if kind == "kill":
            for connection in self.server:
                connection.is_alive = False
        elif kind == "down":
            self.server_is_up = False
            for _ in range(self.random.randrange(30)):
                yield
            self.server_is_up = True
        elif kind == "drain":
            self.execute(core.invalidate(self.now))
        elif kind == "resize":
            max_size = self.random.randrange(1, 8)
            min_size = self.random.randrange(max_size)
            self.execute(core.resize(min_size, max_size, self.now))
        else:
            core.suspend()
            for _ in range(self.random.randrange(10)):
                yield
            self.execute(core.resume(self.now))

    # Invariants.

    def check_after_settling(self):
        core = self.core
        if core.waiters and not core.is_suspended:
            assert not core.idle, "Waiters wait although connections are idle."

    def check(self):
        core = self.core
        total = len(core.entries) + core.connecting + core.closing
        # A pool that was made smaller sheds what is in use when it's back.
        assert total <= max(self.highest_max_size(), 0), "max_size was exceeded."
        assert len(self.server) <= total, "The server has more than is counted."
        assert core.connecting >= 0 and core.closing >= 0
        # What was lost is in the inbox only.
        entries = {entry.serial: entry for entry in core.all_entries()}
        entries.update((entry.serial, entry) for entry in core.inbox)
        assert core.valid == sum(
            entries[serial].generation == core.generation for serial in core.entries
        ), "Entries of the current generation were miscounted."
        if core.waiters:
            assert core.contended, "Waiters, but nobody takes the lock."

    def highest_max_size(self):
        """Return the limit, taking into account that it was lowered."""
        core = self.core
        self._limit = max(
            core.max_size,
            min(
                getattr(self, "_limit", core.max_size),
                len(core.entries) + core.connecting + core.closing,
            ),
        )
        return self._limit

    # Walking.

    def walk(self, steps, *, clients=12, disturbed=True):
        """Take so many steps, and then let everybody finish."""
        for number in range(steps):
            if number % self.PERIOD == 0:
                self.come_to_rest()
            choice = self.random.random()
            if choice < 0.02:
                self.now += self.random.choice([0.1, 1, 10])
            elif choice < 0.03:
                self.parties.append(self.reaper())
            elif choice < 0.033 and disturbed:
                self.parties.append(self.disturbance())
            elif choice < 0.2 and len(self.parties) < clients:
                self.parties.append(self.client())
            self.step()
        self.finish()

    def step(self):
        """Let one party that can go on do so. Return whether there was one."""
        candidates = list(range(len(self.parties)))
        self.random.shuffle(candidates)
        for index in candidates:
            party = self.parties[index]
            party, condition = party if isinstance(party, tuple) else (party, None)
            if condition is not None and not condition():
                continue
            # Steps may add parties, but only behind the others.
            try:
                condition = next(party)
            except StopIteration:
                del self.parties[index]
            else:
                self.parties[index] = (party, condition)
            party = None
            self.check()
            return True
        return False

    def come_to_rest(self):
        """Go on until nobody can before time passes."""
        while self.step():
            pass
        self.check_nobody_forgotten()

    def finish(self):
        """Let everybody finish; time passes only when nobody can go on."""
        self.server_is_up = True
        while self.parties:
            self.come_to_rest()
            self.now += 0.1
            self.execute(self.core.reap(self.now))
        core = self.core
        self.execute(core.reap(self.now))
        while self.step():
            pass
        assert not core.waiters, "Somebody waits for ever."
        assert not core.inbox, "Lost entries were not taken back."
        assert not self.owners, "An entry wasn't given back."
        assert len(core.idle) == len(core.entries) == len(self.server)
        assert not core.connecting and not core.closing

    def check_nobody_forgotten(self):
        """When nobody can go on, those who wait must have a reason to."""
        core = self.core
        assert not (core.is_closed and core.idle), "A closed pool keeps connections."
        if core.waiters and not core.is_suspended and not core.inbox:
            assert not core.idle, "A wakeup was lost."
            assert (
                core.connecting or core.room <= 0 or core.retry_at > self.now
            ), "Nobody connects although there is room."

    def close(self):
        """Close the pool, and check that nothing is left open."""
        self.execute(self.core.close(self.now))
        self.finish()
        assert not self.server, "Connections were left open."
        assert self.core.size == 0 and self.core.closing == 0
        assert math.isfinite(self.now)
