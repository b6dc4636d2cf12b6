"""What adapters have in common: health, cleaning, counting, messages."""

import logging
import threading
import weakref
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from itertools import count
from math import inf
from time import monotonic
from typing import Any, ClassVar, Iterator, Optional

from django.core.exceptions import ImproperlyConfigured
from django.db.pool import (
    BaseConnector,
    BasePool,
    PoolClosed,
    PoolError,
    PoolStats,
    PoolTimeout,
)
from django.db.pool.base import check_by, reset_by
from django.db.pool.stats import Histogram
from django.utils.module_loading import import_string

logger = logging.getLogger("django.db.pool")

# Pools of a parent process. Their finalizers would wait for threads that a
# forked child doesn't have, or for locks that nobody will release.
_inherited_pools: list[Any] = []


class Physical:
    """
    A driver's connection, and what is known about it for as long as it's open.

    It is the entry that the connector gets to see.
    """

    def __init__(self, connection: Any, serial: int, generation: int) -> None:
        self.connection = connection
        self.serial = serial
        self.generation = generation
        self.facts: dict[str, Any] = {}
        self.session: Any = None
        self.lessee: Optional[Callable[[], Any]] = None
        self.poll: Optional[Callable[[int], Any]] = None
        # Until then it's lent without a round trip to see whether it lives.
        self.fresh_until = -inf
        self.is_used = False
        # Whether it was lent since it was cleaned.
        self.needs_cleaning = False
        # The Lease of the current borrower.
        self.lease: Callable[[], Optional["Lease"]] = lambda: None

    @property
    def is_lent(self) -> bool:
        lease = self.lease()
        return lease is not None and lease.acquired_at is not None


class Lease:
    """
    The entry that a borrower gets: one for each lending, so that pools which
    notice when a borrower drops its connection can do so.
    """

    def __init__(self, pool: "AdapterPool", physical: Physical, handle: Any) -> None:
        self.pool = pool
        self.physical = physical
        # What the adapted pool lent.
        self.handle = handle
        self.connection = physical.connection
        self.facts = physical.facts
        self.session = physical.session
        self.lessee: Optional[Callable[[], Any]] = None
        self.acquired_at: Optional[float] = None

    def __repr__(self) -> str:
        return "<%s of '%s' %s>" % (
            type(self).__name__,
            self.pool.name,
            "idle" if self.acquired_at is None else "in use",
        )


class AdapterPool(BasePool):
    """
    The part of a pool that the adapted one doesn't have, or has differently.
    """

    # Options that the adapted pool doesn't heed.
    unheeded_options: ClassVar[frozenset[str]] = frozenset()

    supports_suspend = False
    supports_max_idle = False
    supports_leak_threshold = False
    supports_idle_lifetime = False

    connector: BaseConnector
    name: str

    def __init__(
        self, connector: BaseConnector, *, name: str = "default", **options: Any
    ) -> None:
        super().__init__(connector, name=name, **options)
        self._refuse_unheeded_options()
        self._timeout: float = (
            inf if self.options.timeout is None else self.options.timeout
        )
        self._ping_after = inf
        self._watches = False
        self._check = self._find_check(self.options.check)
        self._is_closed = False
        self._forget()

    def _forget(self) -> None:
        """Begin with nothing, as in a forked child."""
        # Guards all that follows. Reentrant, for what is closed in the course
        # of garbage collection is counted too. Notified when connections were
        # opened, closed or given back.
        self._changed = threading.Condition(threading.RLock())
        self._physicals: dict[int, Physical] = {}
        self._serials = count(1)
        # Connections of another generation are closed instead of lent.
        self._generation = 0
        self._last_error: Optional[BaseException] = None
        self._connecting = 0
        self._waiting = 0
        self._acquired = 0
        self._reused = 0
        self._returned = 0
        self._opened = 0
        self._timeouts = 0
        self._refused = 0
        self._resets = 0
        self._checks = 0
        self._check_failures = 0
        self._connect_errors = 0
        self._waits = Histogram()
        self._pins: Counter[str] = Counter()
        self._use_seconds = 0.0

    def _refuse_unheeded_options(self) -> None:
        for name in sorted(self.unheeded_options):
            value = getattr(self.options, name)
            if value != self.options.fields[name][0]:
                raise ImproperlyConfigured(
                    "%s doesn't heed '%s'. Remove it from the pool's options, or "
                    "use Django's own pool." % (type(self).__name__, name)
                )

    def _find_check(self, option: Any) -> Optional[Callable[[Physical], Any]]:
        connector = self.connector
        if option == "off":
            return None
        if option == "auto":
            self._watches = True
            self._ping_after = connector.ping_after
            return connector.check  # type: ignore[no-any-return]
        self._ping_after = 0.0
        if option == "ping":
            return connector.check  # type: ignore[no-any-return]
        check = option if callable(option) else import_string(option)
        return check_by(check)  # type: ignore[no-any-return]

    # Physical connections.

    def _open_physical(self) -> Physical:
        """Open a connection and configure it, for the adapted pool."""
        connector = self.connector
        with self._changed:
            self._connecting += 1
            generation = self._generation
        try:
            connection = connector.open()
            physical = Physical(connection, next(self._serials), generation)
            try:
                self._validate_connection(connection)
                connector.configure(physical)
                if self._watches:
                    physical.poll = connector.watch(connection)
            except BaseException:
                self._close_physical(physical)
                raise
        except BaseException as e:
            with self._changed:
                self._connecting -= 1
                self._connect_errors += 1
                self._last_error = e
                self._changed.notify_all()
            raise
        physical.fresh_until = monotonic() + self._ping_after
        with self._changed:
            self._connecting -= 1
            self._opened += 1
            self._last_error = None
            self._physicals[id(connection)] = physical
            self._changed.notify_all()
        return physical

    def _validate_connection(self, connection: Any) -> None:
        """Raise ImproperlyConfigured if the adapted pool can't keep it."""

    def _close_physical(self, physical: Physical) -> None:
        connection, physical.connection = physical.connection, None
        if connection is None:
            return
        physical.poll = None
        try:
            self.connector.close(connection)
        except Exception as e:
            logger.debug("Pool '%s': close raised %s.", self.name, type(e).__name__)
        self._forget_physical(connection)

    def _forget_physical(self, connection: Any) -> None:
        with self._changed:
            self._physicals.pop(id(connection), None)
            self._changed.notify_all()

    def _is_healthy(self, physical: Physical) -> bool:
        """Return whether a connection can be lent."""
        if self._check is None:
            return True
        is_readable = physical.poll is not None and bool(physical.poll(0))
        if not is_readable and monotonic() < physical.fresh_until:
            return True
        with self._changed:
            self._checks += 1
        try:
            is_alive = self._check(physical)
        except Exception as e:
            logger.debug("Pool '%s': check raised %s.", self.name, type(e).__name__)
            is_alive = False
        if is_alive is None:
            is_alive = not is_readable
        if is_alive:
            physical.fresh_until = monotonic() + self._ping_after
            return True
        with self._changed:
            self._check_failures += 1
        return False

    def _clean(self, physical: Physical) -> bool:
        """Clean what comes back. Return whether it can be used again."""
        option = self.options.reset
        connector = self.connector
        try:
            if option == "auto" and connector.is_clean(physical):
                return True
            with self._changed:
                self._resets += 1
            if option == "auto":
                return bool(connector.reset(physical))
            if option == "always":
                return bool(connector.reset(physical, full=True))
            if option == "rollback":
                connector.rollback(physical)
                return bool(connector.is_clean(physical) or connector.reset(physical))
            reset = option if callable(option) else import_string(option)
            return bool(reset_by(reset, connector)(physical))
        except Exception as e:
            logger.warning(
                "Pool '%s': a connection was discarded, for cleaning it raised %s.",
                self.name,
                type(e).__name__,
            )
            return False

    # Lending.

    @contextmanager
    def _counted_as_waiting(self) -> Iterator[None]:
        with self._changed:
            self._waiting += 1
        try:
            yield
        finally:
            with self._changed:
                self._waiting -= 1

    def _lend(self, physical: Physical, handle: Any, started: float) -> Lease:
        """Return the Lease of a connection that the adapted pool lent."""
        lease = Lease(self, physical, handle)
        lease.acquired_at = now = monotonic()
        physical.lease = weakref.ref(lease)
        with self._changed:
            self._acquired += 1
            self._reused += physical.is_used
            self._waits.observe(now - started)
            physical.is_used = True
        return lease

    def _take_back(self, lease: Lease) -> bool:
        """
        Begin to take back a lease. Return False if that is all there is to do.

        Raise PoolError if it isn't one of this pool's that is lent.
        """
        now = monotonic()
        with self._changed:
            acquired_at = lease.acquired_at
            if lease.pool is self and acquired_at is not None:
                lease.acquired_at = None
                if lease.physical.connection is None:
                    # A forked child gives back what its parent borrowed.
                    return False
                self._returned += 1
                self._use_seconds += now - acquired_at
                lease.physical.fresh_until = now + self._ping_after
                return True
        raise PoolError(
            "%r isn't lent by the pool of '%s': it was given back before, or belongs "
            "to another pool. Release each acquired entry once." % (lease, self.name)
        )

    def _came_back(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def count_pin(self, reason: str) -> None:
        with self._changed:
            self._pins[reason] += 1

    def _timeout_error(self, timeout: float) -> PoolTimeout:
        """Return what to raise for a caller that is counted as waiting."""
        error: PoolTimeout = self._make_timeout_error(
            timeout, self.stats(), self._waiting, self._last_error
        )
        with self._changed:
            self._timeouts += 1
        return error

    def _closed_error(self, while_waiting: bool = False) -> PoolClosed:
        if while_waiting:
            return PoolClosed(
                "The pool of '%s' was closed while waiting for a connection."
                % self.name
            )
        return PoolClosed(
            "The pool of '%s' is closed. Make a new one, or close it later." % self.name
        )

    # Steering.

    def _wait_until_empty(self, timeout: float) -> bool:
        deadline = monotonic() + timeout
        with self._changed:
            while self._physicals or self._connecting:
                remaining = deadline - monotonic()
                if remaining <= 0:
                    return False
                self._changed.wait(remaining)
        return True

    def _abandon_all(self, adapted_pool: Any) -> None:
        """Let go of everything that is a parent process's."""
        _inherited_pools.append(adapted_pool)
        physicals = list(self._physicals.values())
        self._forget()
        for physical in physicals:
            if (lease := physical.lease()) is not None and physical.is_lent:
                physical.connection = None
                self.connector.abandon(lease)
            else:
                self.connector.abandon(physical)

    def _make_stats(self, idle: int, in_use: int, waiting: int, lost: int) -> PoolStats:
        """Return a PoolStats. The caller holds the lock of `_changed`."""
        max_size = self.options.max_size
        return PoolStats(
            size=idle + in_use + self._connecting,
            idle=idle,
            in_use=in_use,
            connecting=self._connecting,
            waiting=waiting,
            min_size=self.options.min_size,
            max_size=max_size,
            acquired=self._acquired,
            reused=self._reused,
            opened=self._opened,
            closed=self._opened - len(self._physicals),
            timeouts=self._timeouts,
            refused=self._refused,
            lost=lost,
            resets=self._resets,
            checks=self._checks,
            check_failures=self._check_failures,
            connect_errors=self._connect_errors,
            pins=tuple(sorted(self._pins.items())),
            wait_seconds=self._waits.total,
            use_seconds=self._use_seconds,
            wait_counts=self._waits.snapshot(),
        )
