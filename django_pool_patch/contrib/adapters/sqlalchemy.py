"""
SQLAlchemy's QueuePool as a pool of Django's, for any database.

Nothing of SQLAlchemy is used but the pool: no engine, and no dialect of any
database.
"""

from time import monotonic
from typing import Any, Optional

from django.core.exceptions import ImproperlyConfigured
from django.db.pool import BaseConnector, PoolStats

from .base import AdapterPool, Lease, Physical

try:
    import sqlalchemy.event
    import sqlalchemy.exc
    import sqlalchemy.pool
    from sqlalchemy.engine.default import DefaultDialect
except ImportError as e:
    raise ImproperlyConfigured(
        "QueuePool needs SQLAlchemy (%s). Install it with: python -m pip install "
        "django-pool-patch[adapters]" % e
    ) from e

# Seconds that SQLAlchemy's pool is waited for at a time. It has one timeout
# for all callers, and doesn't wake those who wait when it's disposed of, or
# when somebody else's attempt to connect has failed.
SLICE = 0.05

# The key of a record's info, which lives as long as the connection.
INFO_KEY = "django_pool_patch"


class _Dialect(DefaultDialect):
    """How SQLAlchemy's pool closes a connection."""

    def __init__(self, pool: "QueuePool") -> None:
        super().__init__()
        self._pool = pool

    def do_close(self, dbapi_connection: Any) -> None:
        self._pool._close_connection(dbapi_connection)

    def do_terminate(self, dbapi_connection: Any) -> None:
        self._pool._close_connection(dbapi_connection)


class QueuePool(AdapterPool):
    # A released connection is up for grabs: whoever comes first gets it.
    supports_fifo = False
    # drain() works, but an idle connection is closed only when its turn comes.
    supports_drain = False
    # pool_size can't be changed.
    supports_resize = False
    # There is no way to get at what is idle but to borrow it.
    supports_check = False
    # Nothing is opened before somebody asks for it.
    supports_wait = False
    supports_min_size = False
    # There is nothing like it.
    supports_suspend = False
    supports_max_waiting = False
    supports_max_idle = False
    supports_leak_threshold = False
    # Age is looked at when a connection is lent.
    supports_idle_lifetime = False

    unheeded_options = frozenset(
        ["min_size", "max_waiting", "max_idle", "leak_threshold", "reconnect_timeout"]
    )

    def __init__(
        self, connector: BaseConnector, *, name: str = "default", **options: Any
    ) -> None:
        super().__init__(connector, name=name, **options)
        self._pool = self._make_pool()

    def _make_pool(self) -> sqlalchemy.pool.QueuePool:
        options = self.options
        pool = sqlalchemy.pool.QueuePool(
            self._connect,
            # 0 means no limit.
            pool_size=options.max_size or 0,
            max_overflow=0,
            timeout=SLICE,
            use_lifo=True,
            recycle=options.max_lifetime or -1,
            # Django's connectors know better what a connection needs.
            reset_on_return=None,
            dialect=_Dialect(self),
        )
        sqlalchemy.event.listen(pool, "connect", self._on_connect)
        sqlalchemy.event.listen(pool, "checkout", self._on_checkout)
        sqlalchemy.event.listen(pool, "reset", self._on_reset)
        return pool

    # What SQLAlchemy's pool calls.

    def _connect(self) -> Any:
        return self._open_physical().connection

    def _close_connection(self, connection: Any) -> None:
        physical = self._physicals.get(id(connection))
        if physical is not None:
            self._close_physical(physical)

    def _on_connect(self, connection: Any, record: Any) -> None:
        record.info[INFO_KEY] = self._physicals[id(connection)]

    def _on_checkout(self, connection: Any, record: Any, proxy: Any) -> None:
        physical: Physical = record.info[INFO_KEY]
        if physical.generation != self._generation:
            raise sqlalchemy.exc.DisconnectionError("The pool was drained.")
        if not self._is_healthy(physical):
            raise sqlalchemy.exc.InvalidatePoolError("The connection is dead.")

    def _on_reset(self, connection: Any, record: Any, state: Any) -> None:
        # Usually everything has been done when a connection comes here. It
        # hasn't if a lease was dropped.
        physical: Optional[Physical] = record.info.get(INFO_KEY)
        if physical is None or physical.connection is None:
            return
        if physical.needs_cleaning and not self._clean(physical):
            raise sqlalchemy.exc.DisconnectionError("The session can't be cleaned.")

    # Lending.

    def acquire(self, timeout: Optional[float] = None) -> Lease:
        timeout = self._timeout if timeout is None else timeout
        if self._is_closed:
            raise self._closed_error()
        started = monotonic()
        with self._counted_as_waiting():
            proxy = self._check_out(timeout, started + timeout)
        # The record is a private matter, but its info isn't.
        physical: Physical = proxy.info[INFO_KEY]
        physical.needs_cleaning = True
        lease = self._lend(physical, proxy, started)
        if self._is_closed:
            self.discard(lease)
            raise self._closed_error(while_waiting=True)
        return lease

    def _check_out(self, timeout: float, deadline: float) -> Any:
        while True:
            max_size = self.options.max_size
            is_exhausted = max_size is not None and self._pool.checkedout() >= max_size
            if is_exhausted and monotonic() >= deadline:
                raise self._timeout_error(timeout)
            try:
                return self._pool.connect()
            except sqlalchemy.exc.TimeoutError:
                if self._is_closed:
                    raise self._closed_error(while_waiting=True) from None
            except sqlalchemy.exc.InvalidRequestError:
                # Two connections in a row turned out to be dead.
                pass

    def release(self, lease: Lease) -> None:
        if not self._take_back(lease):
            return
        physical = lease.physical
        is_reusable = (
            not self._is_closed
            and physical.generation == self._generation
            and self._clean(physical)
        )
        self._put(lease, is_reusable)

    def discard(self, lease: Lease) -> None:
        if not self._take_back(lease):
            return
        if lease.connection is None:
            # Somebody made a connection their own. The pool forgets it.
            with self._changed:
                physical = lease.physical
                connection, physical.connection = physical.connection, None
                self._forget_physical(connection)
            lease.handle.detach()
            lease.handle = None
            self._came_back()
        else:
            self._put(lease, is_reusable=False)

    def _put(self, lease: Lease, is_reusable: bool) -> None:
        proxy, lease.handle = lease.handle, None
        if is_reusable:
            lease.physical.needs_cleaning = False
            proxy.close()
        else:
            proxy.invalidate()
        if self._is_closed:
            # close() may have missed it.
            self._pool.dispose()
        self._came_back()

    # Steering.

    def close(self, timeout: float = 5.0) -> bool:
        self._is_closed = True
        self._pool.dispose()
        return self._wait_until_empty(timeout)

    def drain(self) -> None:
        """
        Have all connections replaced: what is in use when it comes back, what
        is idle before it's lent again.
        """
        with self._changed:
            self._generation += 1

    def stats(self) -> PoolStats:
        with self._changed:
            open_now = len(self._physicals)
            in_use = sum(physical.is_lent for physical in self._physicals.values())
            return self._make_stats(
                idle=open_now - in_use,
                in_use=in_use,
                waiting=self._waiting,
                lost=self._acquired - self._returned - in_use,
            )

    def after_fork_in_child(self) -> None:
        self._abandon_all(self._pool)
        self._pool = self._make_pool()
