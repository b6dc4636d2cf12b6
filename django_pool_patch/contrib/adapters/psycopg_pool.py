"""
psycopg_pool's ConnectionPool as a pool of Django's.

It pools connections of psycopg 3, to PostgreSQL or whatever speaks its
protocol.
"""

from math import inf
from time import monotonic, sleep
from typing import Any, Optional, cast

from django.core.exceptions import ImproperlyConfigured
from django.db.pool import BaseConnector, PoolFull, PoolStats, PoolTimeout

from .base import AdapterPool, Lease

try:
    import psycopg
    import psycopg_pool
except ImportError as e:
    raise ImproperlyConfigured(
        "PsycopgPool needs psycopg and psycopg_pool (%s). Install them with: "
        "python -m pip install django-pool-patch[adapters,postgresql]" % e
    ) from e

# Seconds that stand for "for ever": three years are more than enough, and not
# too many for any platform's timers.
FOREVER = 1e8

# psycopg_pool refuses to serve who has no time at all, even if there is an
# idle connection.
SHORTEST_TIMEOUT = 0.01

# Seconds between looks for min_size connections.
WAIT_INTERVAL = 0.01


class _Opener:
    """Take the place of the connection class that psycopg_pool connects by."""

    def __init__(self, pool: "PsycopgPool") -> None:
        self._pool = pool

    def connect(self, conninfo: str, **kwargs: Any) -> Any:
        return self._pool._open_physical().connection


class PsycopgPool(AdapterPool):
    # Only since psycopg_pool 3.3 there is a drain().
    supports_drain = hasattr(psycopg_pool.ConnectionPool, "drain")
    # This takes a drain() too.
    supports_invalidation = supports_drain
    # resize() works, but a smaller max_size doesn't close what exceeds it, and
    # a larger one isn't noticed by those who are waiting already.
    supports_resize = False
    # Whoever waits while connecting fails waits until its timeout, for
    # psycopg_pool tries again in the background.
    supports_fail_fast = False
    # What a borrower drops is gone, and its place in the pool with it.
    supports_reclaim = False
    # There is nothing like it.
    supports_suspend = False
    # One unused connection is closed each max_idle seconds, by psycopg_pool's
    # own clock and not by reap().
    supports_max_idle = False
    # Age is looked at when a connection comes back.
    supports_idle_lifetime = False
    # There is nothing like it.
    supports_leak_threshold = False

    unheeded_options = frozenset(["leak_threshold"])

    def __init__(
        self, connector: BaseConnector, *, name: str = "default", **options: Any
    ) -> None:
        super().__init__(connector, name=name, **options)
        self._pool = self._make_pool()

    def _forget(self) -> None:
        super()._forget()
        self._in_use = 0
        self._is_opened = False

    def _make_pool(self) -> "psycopg_pool.ConnectionPool[Any]":
        options = self.options
        return psycopg_pool.ConnectionPool(
            connection_class=cast(Any, _Opener(self)),
            min_size=options.min_size,
            max_size=options.max_size or int(FOREVER),
            open=False,
            check=self._check_connection,
            name="django-pool-%s" % self.name,
            timeout=min(self._timeout, FOREVER),
            max_waiting=options.max_waiting,
            max_lifetime=options.max_lifetime or FOREVER,
            max_idle=options.max_idle or FOREVER,
            reconnect_timeout=options.reconnect_timeout,
            reconnect_failed=self._reconnect_failed,
        )

    def _validate_connection(self, connection: Any) -> None:
        if not hasattr(connection, "pgconn"):
            raise ImproperlyConfigured(
                "PsycopgPool pools connections of psycopg 3, and the database '%s' "
                "is connected to by something else (%s). Use "
                "django_pool_patch.contrib.adapters.sqlalchemy.QueuePool, or remove "
                "'pool_class'." % (self.name, type(connection).__module__)
            )

    def _check_connection(self, connection: Any) -> None:
        """Raise an exception if a connection must not be lent."""
        physical = self._physicals[id(connection)]
        if self._is_healthy(physical):
            return
        with self._changed:
            is_first = physical.generation == self._generation
            self._generation += is_first
        self._close_physical(physical)
        if is_first and self.supports_drain:
            self._pool.drain()
        raise psycopg.OperationalError("The connection is dead.")

    def _reconnect_failed(self, pool: Any) -> None:
        self.reconnect_failed(self._last_error)

    def reconnect_failed(self, error: Optional[BaseException]) -> None:
        """Hook: connecting has failed for reconnect_timeout seconds."""

    def acquire(self, timeout: Optional[float] = None) -> Lease:
        timeout = self._timeout if timeout is None else timeout
        self.open()
        started = monotonic()
        with self._counted_as_waiting():
            connection = self._get_connection(timeout)
            with self._changed:
                self._in_use += 1
        return self._lend(self._physicals[id(connection)], connection, started)

    def _get_connection(self, timeout: float) -> Any:
        try:
            return self._pool.getconn(min(max(timeout, SHORTEST_TIMEOUT), FOREVER))
        except psycopg_pool.PoolTimeout:
            raise self._timeout_error(timeout) from self._last_error
        except psycopg_pool.TooManyRequests:
            with self._changed:
                self._refused += 1
            raise PoolFull(
                "Refused to wait for a connection to '%s' (max_size=%s, %d waiting "
                "already, max_waiting=%d). Raise max_size or max_waiting, or "
                "shorten transactions."
                % (
                    self.name,
                    self.options.max_size,
                    self._waiting - 1,
                    self.options.max_waiting,
                )
            ) from None
        except psycopg_pool.PoolClosed:
            raise self._closed_error(while_waiting=True) from None

    def release(self, lease: Lease) -> None:
        if self._take_back(lease):
            self._put(lease, is_reusable=self._clean(lease.physical))

    def discard(self, lease: Lease) -> None:
        if self._take_back(lease):
            self._put(lease, is_reusable=False)

    def _put(self, lease: Lease, is_reusable: bool) -> None:
        if not is_reusable:
            # psycopg_pool sees that for itself, and replaces it.
            self._close_physical(lease.physical)
        with self._changed:
            self._in_use -= 1
        self._pool.putconn(lease.handle)
        self._forget_closed()
        self._came_back()

    def _forget_closed(self) -> None:
        """Note which idle connections psycopg_pool has closed on its own."""
        with self._changed:
            for physical in list(self._physicals.values()):
                connection = physical.connection
                if (
                    connection is not None
                    and connection.closed
                    and not physical.is_lent
                ):
                    physical.connection = None
                    self._forget_physical(connection)

    def open(self, wait: bool = False, timeout: float = 30.0) -> None:
        with self._changed:
            if self._is_closed:
                raise self._closed_error()
            self._is_opened = True
            self._pool.open()
        if wait:
            self.wait(timeout)

    def wait(self, timeout: float = 30.0) -> None:
        # psycopg_pool's own wait() closes the pool when it times out.
        self.open()
        deadline = monotonic() + timeout
        min_size = self.options.min_size
        while (size := self._open_size()) < min_size:
            if self._is_closed:
                raise self._closed_error(while_waiting=True)
            if monotonic() >= deadline:
                raise PoolTimeout(
                    "The pool of '%s' couldn't open min_size=%d connections within "
                    "%.2f seconds (%d are open). Lower min_size, or see the server's "
                    "log." % (self.name, min_size, timeout, size)
                ) from self._last_error
            sleep(WAIT_INTERVAL)

    def _open_size(self) -> int:
        stats = self.stats()
        return int(stats.idle + stats.in_use)

    def close(self, timeout: float = 5.0) -> bool:
        deadline = monotonic() + timeout
        with self._changed:
            self._is_closed = True
        # It waits for threads, of which one may be connecting.
        self._pool.close(timeout=timeout)
        self._forget_closed()
        return self._wait_until_empty(max(deadline - monotonic(), 0))

    def _wait_until_empty(self, timeout: float) -> bool:
        deadline = monotonic() + timeout
        # What was being opened is closed unseen.
        while not super()._wait_until_empty(WAIT_INTERVAL if timeout else 0):
            self._forget_closed()
            if monotonic() >= deadline:
                return not (self._physicals or self._connecting)
        return True

    def drain(self) -> None:
        if not self.supports_drain:
            raise self._unsupported("drain")
        with self._changed:
            self._generation += 1
        if self._is_opened and not self._is_closed:
            self._pool.drain()
        self._forget_closed()

    def resize(self, min_size: int, max_size: Optional[int]) -> None:
        # Validates.
        type(self.options)(min_size=min_size, max_size=max_size)
        self._pool.resize(min_size, int(FOREVER) if max_size is None else max_size)
        self.options.min_size = min_size
        self.options.max_size = max_size

    def check(self) -> None:
        """
        Make a round trip on each idle connection, replacing dead ones.

        They are borrowed one by one: psycopg_pool's own check() doesn't know
        the connector's.
        """
        with self._changed:
            for physical in self._physicals.values():
                physical.fresh_until = -inf
        connections = []
        try:
            for _ in range(self._pool.get_stats()["pool_available"]):
                connections.append(self._pool.getconn(SHORTEST_TIMEOUT))
        except psycopg_pool.PoolTimeout:
            # Others have borrowed some, or some are being replaced.
            pass
        finally:
            for connection in connections:
                self._pool.putconn(connection)
        self._forget_closed()

    def stats(self) -> PoolStats:
        self._forget_closed()
        with self._changed:
            open_now = len(self._physicals)
            return self._make_stats(
                idle=max(0, open_now - self._in_use),
                in_use=self._in_use,
                # psycopg_pool counts some that gave up, this those too that
                # are about to be served.
                waiting=min(
                    self._waiting, self._pool.get_stats().get("requests_waiting", 0)
                ),
                lost=0,
            )

    def after_fork_in_child(self) -> None:
        self._abandon_all(self._pool)
        self._pool = self._make_pool()
