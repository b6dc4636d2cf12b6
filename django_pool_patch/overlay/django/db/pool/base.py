"""
What every pool is, and what it asks of a connector.

DatabaseWrapper uses nothing of a pool but BasePool, so that other pools can
take the place of Django's.
"""

import os
import select
import weakref
from contextlib import contextmanager

from .exceptions import PoolTimeout
from .options import PoolOptions

try:
    import ctypes
except ImportError:
    ctypes = None

# That the other side has closed the connection, or its half of it: what a poll
# object reports, where it can. There may be something left to read.
POLLRDHUP = getattr(select, "POLLRDHUP", 0)
HUNG_UP = (
    POLLRDHUP | select.POLLHUP | select.POLLERR | select.POLLNVAL
    if hasattr(select, "poll")
    else 0
)

# All pools of this process, for those who have to reach each of them: after a
# fork, and at the interpreter's exit.
live_pools = weakref.WeakSet()

# Connections that a forked child inherited. Closing them would say goodbye on
# a socket that is the parent's, and some drivers close what is collected.
_inherited_connections = []


def _keep_forever(connection):
    """
    Keep a connection from being collected, even at the interpreter's exit.

    For SQLite, "it is safer to allow the connection to leak": closing it in a
    child would roll back the parent's transaction and delete its journal. See
    https://www.sqlite.org/howtocorrupt.html, section 2.6.
    """
    _inherited_connections.append(connection)
    if hasattr(ctypes, "pythonapi"):
        # The list above is emptied when the interpreter exits. A reference
        # that nobody knows of outlives that.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))


class BaseConnector:
    """
    What a pool has to know about a driver.

    Only open() must be provided. Methods are called without any lock of the
    pool's, from any thread, but never by two of them for one connection. What
    they raise counts as a failure, and is logged.
    """

    # Seconds of idleness after which a connection is asked for a sign of life
    # before it's lent, when POOL's "check" is "auto".
    ping_after = 30.0

    def open(self):
        """
        Return a new connection of the driver's.

        What it raises reaches those who wait for a connection.
        """
        raise NotImplementedError(
            "subclasses of BaseConnector must provide an open() method"
        )

    def configure(self, entry):
        """
        Bring the session of a new connection, or of one that was fully reset,
        into its initial state. What is worth knowing about the server goes
        into entry.facts, what the connector needs later into entry.session.
        """

    def fileno(self, connection):
        """
        Return the file descriptor of the connection's socket, or None.

        While a connection is idle and well, there is nothing to read from it.
        """
        return None

    def watch(self, connection):
        """
        Return a callable that takes a timeout in milliseconds and returns
        whether the connection wants attention, without a round trip, or None
        if there can't be one. It's called with 0 before each lending.
        """
        fileno = self.fileno(connection)
        if fileno is None:
            return None
        if hasattr(select, "poll"):
            poll = select.poll()
            poll.register(fileno, select.POLLIN | POLLRDHUP)
            return poll.poll
        return lambda milliseconds: select.select(
            [fileno], [], [], milliseconds / 1000
        )[0]

    def is_hung_up(self, events):
        """
        Return whether what watch()'s callable returned says that the other
        side has closed the connection.
        """
        return any(isinstance(event, tuple) and event[1] & HUNG_UP for event in events)

    def check(self, entry):
        """
        Return whether the connection lives, at the cost of a round trip.

        Return None when that can't be told.
        """
        return None

    def is_clean(self, entry):
        """
        Return whether the session is as configure() left it, as far as that
        can be told without a round trip. Don't raise.
        """
        return True

    def reset(self, entry, full=False):
        """
        Bring a session that isn't clean into its initial state: what is known
        to have been changed, or, when `full`, all there is.

        Return whether the connection can be used again. None says that it
        can't, because a new one is needed, but that there's nothing wrong.
        """
        return None if full else True

    def rollback(self, entry):
        """Roll back, whether or not a transaction is open."""
        entry.connection.rollback()

    def close(self, connection):
        """Close the connection."""
        connection.close()

    def enter_loop(self, entry, loop):
        """
        Set entry.connection_in_loop to what the tasks of a running event loop
        are to use the connection by. Don't block.

        Return None, or what is to be called in a thread before they use it.
        """
        entry.connection_in_loop = entry.connection

    def leave_loop(self, entry):
        """
        Take the connection back from an event loop, whose tasks don't use it
        anymore. Don't block.

        Return None if threads can use it now. Otherwise return a
        concurrent.futures.Future that is done when it can be closed, because
        it's in the midst of something that nobody waits for anymore.
        """
        entry.connection_in_loop = None

    def get_thread_ident(self, entry):
        """
        Return the identifier of the thread that an entry's lessee is used in,
        or None if that isn't known.
        """
        return None

    def reclaim(self, entry):
        """
        Take a connection away from a lessee that can't use it anymore, say
        because its thread has ended. Return whether there was such a lessee.
        """
        return False

    def abandon(self, entry):
        """
        Let go of a connection inherited over a fork, in the child.

        Nothing may be sent, for the socket is the parent's: the descriptor is
        pointed at the null device, and the connection is kept from being
        collected.
        """
        connection, entry.connection = entry.connection, None
        if connection is not None:
            self.abandon_connection(connection)

    def abandon_connection(self, connection):
        """Do what abandon() does with a connection that isn't an entry's."""
        _keep_forever(connection)
        try:
            fileno = self.fileno(connection)
        except Exception:
            # Drivers disagree about what to raise for a closed connection.
            return
        if fileno is not None and fileno >= 0:
            null = os.open(os.devnull, os.O_RDWR)
            try:
                os.dup2(null, fileno, inheritable=False)
            finally:
                os.close(null)

    def after_fork_in_child(self):
        """
        Let go of connections that were being opened when the process forked,
        and that the pool doesn't know of.
        """


def check_by(function):
    """
    Return BaseConnector.check() by means of the function that the "check"
    option is.
    """

    def check(entry):
        # Functions written for psycopg_pool raise, or return nothing.
        answer = function(entry.connection)
        return answer is None or bool(answer)

    return check


def reset_by(function, connector):
    """
    Return BaseConnector.reset() by means of the function that the "reset"
    option is.
    """

    def reset(entry):
        function(entry.connection)
        # Whatever it left undone: nobody may get into another's transaction.
        return connector.is_clean(entry) or connector.reset(entry)

    return reset


class BasePool:
    """
    The interface of a pool, and what all pools have in common.

    `connector` is a BaseConnector, `name` what messages call the pool, Django
    gives the alias. The keyword arguments are those of PoolOptions.

    The methods may be called from any thread. acquire(), release() and
    discard() must be provided; of the others, a pool declares what it can't do
    by the supports_* attributes.
    """

    # Whether idle connections are kept open and lent again.
    supports_reuse = True
    # Whether those who wait are served in the order of their arrival.
    supports_fifo = True
    # Whether drain(), resize(), check(), wait() and suspend() work.
    supports_drain = True
    supports_resize = True
    supports_check = True
    supports_wait = True
    supports_suspend = True
    # Whether min_size, max_waiting, max_idle and leak_threshold are heeded.
    supports_min_size = True
    supports_max_waiting = True
    supports_max_idle = True
    supports_leak_threshold = True
    # Whether max_lifetime is heeded while a connection is idle.
    supports_idle_lifetime = True
    # Whether connections that are found dead are replaced without the caller
    # noticing, and all others of their age with them.
    supports_invalidation = True
    # Whether a connection comes back that its borrower dropped.
    supports_reclaim = True
    # Whether a forked child may go on using the pool.
    supports_fork = True
    # Whether callers get the error met while connecting instead of waiting.
    supports_fail_fast = True
    # Whether release_later() works.
    supports_release_later = False

    def __init__(self, connector, *, name="default", **options):
        self.connector = connector
        self.name = name
        self.options = PoolOptions(**options)
        live_pools.add(self)

    def __repr__(self):
        return "<%s name=%r max_size=%s>" % (
            type(self).__name__,
            self.name,
            self.options.max_size,
        )

    def __enter__(self):
        self.open()
        return self

    def __exit__(self, exc_type, exc_value, traceback):
        self.close()

    @contextmanager
    def connection(self, timeout=None):
        """
        Lend the driver's connection for the length of a `with` block.

        `timeout` is as for acquire(). An exception within the block gives the
        connection back like its end does.
        """
        entry = self.acquire(timeout)
        try:
            yield entry.connection
        finally:
            self.release(entry)

    def acquire(self, timeout=None):
        """
        Return an Entry, whose `connection` is the caller's until release().

        `timeout` is the longest wait in seconds; 0 doesn't wait, None means
        the pool's own timeout.

        Raise PoolTimeout, PoolFull or PoolClosed, or what connecting raised
        when nothing else could have served the caller.
        """
        raise NotImplementedError("subclasses of BasePool must provide acquire()")

    def release(self, entry):
        """
        Take back an entry. Its connection is cleaned or closed as needed.

        Raise PoolError if the entry wasn't lent by this pool, or is back
        already; never because of the connection's state.
        """
        raise NotImplementedError("subclasses of BasePool must provide release()")

    def discard(self, entry):
        """Take back an entry, and close its connection."""
        raise NotImplementedError("subclasses of BasePool must provide discard()")

    def release_later(self, entry):
        """
        Take back an entry in a finalizer, which must not wait for anything.
        """
        raise self._unsupported("release_later")

    def count_pin(self, reason):
        """Count a session that was touched, for stats()."""

    def open(self, wait=False, timeout=30.0):
        """
        Begin to open min_size connections, which the first acquire() does too.

        With `wait`, return when they are there, like wait(timeout).
        """

    def close(self, timeout=5.0):
        """
        Close the pool for good: what is idle at once, what is in use when it
        comes back. Those who wait get PoolClosed.

        Wait for at most `timeout` seconds until nothing is open anymore, and
        return whether that is so; 0 doesn't wait.
        """
        raise NotImplementedError("subclasses of BasePool must provide close()")

    def stats(self):
        """Return a PoolStats."""
        raise NotImplementedError("subclasses of BasePool must provide stats()")

    def drain(self):
        """
        Replace all connections: what is idle is closed at once, what is in
        use when it comes back. Use it when servers or credentials changed.
        """
        raise self._unsupported("drain")

    def resize(self, min_size, max_size):
        """Change the limits; `max_size` None makes it unlimited."""
        raise self._unsupported("resize")

    def wait(self, timeout=30.0):
        """
        Wait until min_size connections are open.

        Raise PoolTimeout after `timeout` seconds; its __cause__ is the last
        error met while connecting.
        """
        raise self._unsupported("wait")

    def check(self):
        """Make a round trip on each idle connection, replacing dead ones."""
        raise self._unsupported("check")

    def suspend(self):
        """
        Lend nothing until resume(): callers wait, for as long as they would
        wait for a connection. For a failover that is planned.
        """
        raise self._unsupported("suspend")

    def resume(self):
        """Lend again."""
        raise self._unsupported("resume")

    def reap(self):
        """
        Do what falls due with time. Housekeeping calls it.

        Return when, on the monotonic clock, there is something to do again at
        the latest.
        """
        return float("inf")

    def after_fork_in_child(self):
        """Start afresh in a forked child, abandoning what is the parent's."""

    def _make_timeout_error(self, timeout, stats, waiting, cause, hint=None):
        """
        Return the PoolTimeout for a caller that waited for `timeout` seconds.

        `waiting` counts callers, this one included. `cause` is the last error
        met while connecting, or None. `hint` replaces what is advised.
        """
        if hint is None:
            hint = (
                "Connecting failed: %s" % type(cause).__name__
                if cause is not None
                else "Raise max_size or shorten transactions."
            )
        error = PoolTimeout(
            "Couldn't acquire a connection to '%s' within %.2f seconds "
            "(max_size=%s, %d in use, %s%d waiting). %s"
            % (
                self.name,
                timeout,
                stats.max_size,
                stats.in_use,
                "%d connecting, " % stats.connecting if stats.connecting else "",
                waiting,
                hint,
            )
        )
        error.__cause__ = cause
        return error

    def _unsupported(self, operation):
        return NotImplementedError(
            "%s doesn't support %s()." % (type(self).__name__, operation)
        )
