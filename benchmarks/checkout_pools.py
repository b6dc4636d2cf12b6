"""
The pools whose own work is compared, on connections that do nothing.

Each is measured by its natural way to acquire and to release, written out,
lest a call of the benchmark's own be measured too.
"""

import importlib.util
import socket
from collections import deque
from contextlib import ExitStack, contextmanager
from time import perf_counter
from unittest import mock

import django_pool_patch  # NOQA: F401
from django.db.pool import BaseConnector, ConnectionPool
from django.db.pool.threads import ThreadWaiter

try:
    import psycopg_pool
    from psycopg_pool.pool import WaitingClient
except ImportError:
    psycopg_pool = None

try:
    import sqlalchemy.pool
    from sqlalchemy.engine.default import DefaultDialect
except ImportError:
    sqlalchemy = None
    DefaultDialect = object

# psycopg.pq.TransactionStatus.IDLE, or what is as good without psycopg.
if importlib.util.find_spec("psycopg"):
    from psycopg.pq import TransactionStatus

    IDLE = TransactionStatus.IDLE
else:
    IDLE = 0

# The variants in which connections have a socket.
WITH_SOCKET = {"default", "polled"}


# Connections that do nothing.


class PGconn:
    """What psycopg_pool asks of a connection to see whether it's clean."""

    transaction_status = IDLE


class Connection:
    """A connection of psycopg's and of a DB-API driver's, without a server."""

    _pool = None

    def __init__(self):
        self.pgconn = PGconn()

    @classmethod
    def connect(cls, conninfo="", **kwargs):
        return cls()

    def rollback(self):
        pass

    def close(self):
        pass


class SocketConnection(Connection):
    """A connection whose socket can be polled, and is silent."""

    def __init__(self):
        super().__init__()
        self.socket, self.server = socket.socketpair()

    def close(self):
        self.socket.close()
        self.server.close()


# The pools.


class DjangoPool:
    name = "django.db.pool"

    class Connector(BaseConnector):
        def open(self):
            return Connection()

        def check(self, entry):
            return True

        def is_clean(self, entry):
            # What psycopg_pool looks at, too.
            return entry.connection.pgconn.transaction_status == IDLE

    class SocketConnector(Connector):
        def open(self):
            return SocketConnection()

        def fileno(self, connection):
            return connection.socket.fileno()

    def __init__(self, connections, variant):
        connector = self.SocketConnector if variant in WITH_SOCKET else self.Connector
        self.pool = ConnectionPool(
            connector(),
            min_size=connections,
            max_size=connections,
            check="ping" if variant == "callable" else "auto",
        )
        self.pool.open(wait=True)
        self.acquire = self.pool.acquire
        self.release = self.pool.release

    def run(self, times):
        acquire, release = self.acquire, self.release
        for _ in times:
            release(acquire())

    def serve(self, length, times):
        """
        Return a function that has a connection change hands so many times
        while `length` callers wait, and returns the seconds that giving it
        back took, and another function that ends it all.

        The callers are there in name only: none of them has a thread.
        """
        pool = self.pool
        lock, core, clock = pool._lock, pool._core, pool._clock
        line = deque()

        def enqueue():
            waiter = ThreadWaiter()
            with lock:
                core.enqueue(waiter, clock())
                core.settle(clock())
            line.append(waiter)

        def take():
            # What _wait_for_entry() does for a caller that was served.
            entry = line.popleft().entry
            entry.acquired_at = clock()
            entry.uses += 1
            return entry

        held = self.acquire()
        for _ in range(length):
            enqueue()

        def run():
            nonlocal held
            release = self.release
            seconds = 0.0
            for _ in times:
                begun_at = perf_counter()
                release(held)
                seconds += perf_counter() - begun_at
                held = take()
                enqueue()
            return seconds

        def end():
            nonlocal held
            while line:
                self.release(held)
                held = take()
            self.release(held)

        return run, end

    def close(self):
        self.pool.close()


class PsycopgPool:
    name = "psycopg_pool"

    @staticmethod
    def check(connection):
        pass

    def __init__(self, connections, variant):
        self.pool = psycopg_pool.ConnectionPool(
            connection_class=Connection,
            min_size=connections,
            max_size=connections,
            check=self.check,
            open=False,
        )
        self.pool.open(wait=True)
        self.acquire = self.pool.getconn
        self.release = self.pool.putconn

    def run(self, times):
        getconn, putconn = self.acquire, self.release
        for _ in times:
            putconn(getconn())

    def serve(self, length, times):
        """Do what DjangoPool's does."""
        pool = self.pool
        line = deque()

        def enqueue():
            waiter = WaitingClient()
            with pool._lock:
                pool._waiting.append(waiter)
            line.append(waiter)

        def take():
            # What getconn() does for a caller that was served.
            connection = line.popleft().conn
            connection._pool = pool
            return connection

        held = self.acquire()
        for _ in range(length):
            enqueue()

        def run():
            nonlocal held
            putconn = self.release
            seconds = 0.0
            for _ in times:
                begun_at = perf_counter()
                putconn(held)
                seconds += perf_counter() - begun_at
                held = take()
                enqueue()
            return seconds

        def end():
            nonlocal held
            while line:
                self.release(held)
                held = take()
            self.release(held)

        return run, end

    def close(self):
        self.pool.close()


class SQLAlchemyPool:
    name = "SQLAlchemy"

    class Dialect(DefaultDialect):
        def do_ping(self, dbapi_connection):
            return True

    def __init__(self, connections, variant):
        self.pool = sqlalchemy.pool.QueuePool(
            Connection.connect,
            pool_size=connections,
            max_overflow=0,
            recycle=3600,
            pre_ping=True,
            dialect=self.Dialect(),
        )
        self.acquire = self.pool.connect

    @staticmethod
    def release(connection):
        connection.close()

    def run(self, times):
        connect = self.acquire
        for _ in times:
            connect().close()

    def close(self):
        self.pool.dispose()


POOLS = [DjangoPool]
if psycopg_pool is not None:
    POOLS.append(PsycopgPool)
if sqlalchemy is not None:
    POOLS.append(SQLAlchemyPool)


def get_left_out():
    """Return sentences on the pools that can't be compared."""
    return [
        "%s is left out: it isn't installed." % pool_class.name
        for pool_class in (PsycopgPool, SQLAlchemyPool)
        if pool_class not in POOLS
    ]


@contextmanager
def open_pools(connections, variant):
    """
    Open a pool of each kind, with all of its connections warm.

    Yield them in a dict by their names.
    """
    with ExitStack() as stack:
        if variant == "polled":
            stack.enter_context(
                mock.patch("django.db.pool.threads.TRUST_IN_RETURNED", 0)
            )
        pools = {}
        for pool_class in POOLS:
            pool = pool_class(connections, variant)
            stack.callback(pool.close)
            # What a pool doesn't do with a connection that is new, it does
            # from the second time on.
            for _ in range(2):
                for connection in [pool.acquire() for _ in range(connections)]:
                    pool.release(connection)
            pools[pool.name] = pool
        yield pools
