"""A driver, a clock and threads that do what a test wants."""

import socket
import threading
import time

from django.db.pool import BaseConnector
from django.db.utils import OperationalError

# Seconds after which a test that waits for something in vain fails.
PATIENCE = 20.0


def wait_until(condition, seconds=PATIENCE):
    """Poll until condition() is true; fail after that many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError("Waited for %.0f seconds in vain." % seconds)
        time.sleep(0.001)


class FakeClock:
    """
    A clock that stands still until it's told to advance.

    It's ahead of the monotonic clock, so that housekeeping, which goes by
    that one, doesn't do what the test is about to do.
    """

    def __init__(self):
        self.now = time.monotonic() + 1_000_000.0

    def __call__(self):
        return self.now

    def advance(self, seconds):
        self.now += seconds


class FakeConnection:
    """A driver's connection. FakeConnector counts what happens to it."""

    def __init__(self, connector, serial):
        self.connector = connector
        self.serial = serial
        self.is_alive = True
        self.is_clean = True
        self.closed = False
        # Who believes to be its only user.
        self.owner = None
        self.socket = self.peer = None
        if connector.uses_sockets:
            self.socket, self.peer = socket.socketpair()

    def __repr__(self):
        return "<FakeConnection %d>" % self.serial

    def kill(self):
        """Do what a server does that ends a session."""
        self.is_alive = False
        if self.peer is not None:
            self.peer.close()

    def tell(self):
        """Send something that was not asked for, as servers do at times."""
        self.peer.send(b"x")

    def rollback(self):
        if not self.is_alive or self.closed:
            raise OperationalError("The connection is closed.")
        with self.connector.lock:
            self.connector.rollbacks += 1
        self.is_clean = True

    def close(self):
        with self.connector.lock:
            if self.closed:
                return
            self.closed = True
            self.connector.closes += 1
        if self.socket is not None:
            self.socket.close()
            self.peer.close()


class FakeConnector(BaseConnector):
    """
    A connector to nowhere.

    * fail_with: a callable that returns what open() raises, or None.
    * block(): have open() wait; admit(n) lets n of the waiting through,
      unblock() all. Those who wait, or are to wait, are `arrivals`.
    * reset_result: what reset() returns, or raises if it's an exception.
    * clean_errors, check_errors: exceptions to raise there, once each.
    * gone: entries whose lessees reclaim() finds gone.
    """

    connection_class = FakeConnection

    def __init__(self, uses_sockets=False, ping_after=30.0, password="s3cr3t"):
        self.uses_sockets = uses_sockets
        self.ping_after = ping_after
        self.password = password
        # Guards the counters and `connections`.
        self.lock = threading.Lock()
        self.fail_with = None
        self.reset_result = True
        self.clean_errors = []
        self.check_errors = []
        self.gone = []
        self.connections = []
        self.abandoned = []
        self.arrivals = 0
        self.opens = 0
        self.closes = 0
        self.checks = 0
        self.resets = 0
        self.full_resets = 0
        self.rollbacks = 0
        self.most_open = 0
        self._is_blocking = False
        self._admission = threading.Semaphore(0)

    def __repr__(self):
        return "<FakeConnector password=%r>" % self.password

    # What tests use.

    @property
    def open_now(self):
        with self.lock:
            return self.opens - self.closes

    def block(self):
        self._is_blocking = True

    def admit(self, number=1):
        for _ in range(number):
            self._admission.release()

    def unblock(self):
        self._is_blocking = False
        # More than there will ever be.
        self.admit(1000)

    def kill_all(self):
        with self.lock:
            connections = list(self.connections)
        for connection in connections:
            connection.kill()

    def close_all(self):
        """Close what tests left open."""
        self.unblock()
        with self.lock:
            connections = list(self.connections)
        for connection in connections:
            connection.close()

    # What pools use.

    def open(self):
        with self.lock:
            self.arrivals += 1
        if self._is_blocking and not self._admission.acquire(timeout=PATIENCE):
            raise AssertionError("Nobody let the connector go on.")
        if self.fail_with is not None:
            raise self.fail_with()
        with self.lock:
            self.opens += 1
            connection = self.connection_class(self, self.opens)
            self.connections.append(connection)
            self.most_open = max(self.most_open, self.opens - self.closes)
        return connection

    def configure(self, entry):
        entry.facts = {"serial": entry.connection.serial}
        entry.session = object()

    def fileno(self, connection):
        if connection.socket is None:
            return None
        return connection.socket.fileno()

    def check(self, entry):
        with self.lock:
            self.checks += 1
            error = self.check_errors.pop() if self.check_errors else None
        if error is not None:
            raise error
        return entry.connection.is_alive and not entry.connection.closed

    def is_clean(self, entry):
        if self.clean_errors:
            raise self.clean_errors.pop()
        return entry.connection.is_clean

    def reset(self, entry, full=False):
        with self.lock:
            self.resets += 1
            self.full_resets += full
        if isinstance(self.reset_result, Exception):
            raise self.reset_result
        if self.reset_result:
            entry.connection.is_clean = True
        return self.reset_result

    def reclaim(self, entry):
        if entry in self.gone:
            self.gone.remove(entry)
            return True
        return False

    def abandon(self, entry):
        self.abandoned.append(entry.connection)
        entry.connection = None


class Task(threading.Thread):
    """
    A thread that calls a function, and keeps what it returned or raised.
    """

    def __init__(self, function, *args, **kwargs):
        super().__init__(daemon=True)
        self._call = function, args, kwargs
        self._result = None
        self.error = None
        self.start()

    def run(self):
        function, args, kwargs = self._call
        # Keeps nothing alive after the end, neither in case of an error.
        self._call = None
        try:
            self._result = function(*args, **kwargs)
        except BaseException as e:
            self.error = e
        finally:
            del function, args, kwargs

    def wait(self):
        """Wait for the end; fail if it doesn't come."""
        self.join(PATIENCE)
        if self.is_alive():
            raise AssertionError("%r has not ended." % self)

    def result(self):
        """Return what the function returned, or raise what it raised."""
        self.wait()
        if self.error is not None:
            raise self.error
        result, self._result = self._result, None
        return result
