"""
How the tasks of an event loop use a pooled connection.

It's the same connection that threads use, opened and initialized by the same
code. Here is what works with any driver: a thread does what blocks. Backends
whose drivers can do without one have an object of their own.
"""

import asyncio
import functools
import logging
import threading
import weakref
from concurrent.futures import Future

from django.db.backends.base.statements import TRANSACTION
from django.db.pool.asyncio import call_in_thread, workers
from django.db.utils import InterfaceError

logger = logging.getLogger("django.db.pool")

# Seconds between attempts to interrupt a statement: an interruption that comes
# before the statement has no effect.
SHORTEST_PAUSE = 0.001
LONGEST_PAUSE = 1.0

# A future that is done: the connection can be closed.
NOTHING_PENDING = Future()
NOTHING_PENDING.set_result(None)


def note_statement(connector, session, sql):
    """
    Have the session reset after its use if a statement asks for that.

    `session` is that of the entry whose connection executes the statement.
    """
    if session.is_plain(sql) or session.is_touched:
        return
    reason = connector.session_statements.find_touch(sql, session.wrapper.connection)
    # A driver that knows of transactions has them rolled back anyway.
    if reason is not None and (
        reason != TRANSACTION or not connector.knows_transactions
    ):
        session.is_touched = session.is_suspect = True


def validate_lock(connection_in_loop, lock):
    """
    Raise InterfaceError if the lock that was waited for isn't the connection's
    anymore, because that was given back meanwhile.
    """
    if lock is not connection_in_loop._lock:
        raise InterfaceError(
            "The connection was given back while a statement waited for its turn. "
            "Let statements end before the block."
        )


class ThreadedConnection:
    """
    A connection used by tasks. What blocks is done in a thread, one thing at a
    time.

    When a task is cancelled, what its thread is doing is interrupted, if the
    driver can do that, and the connection is closed at the end of its use: an
    interruption that comes late mustn't hit another's statement.
    """

    def __init__(self, connector, entry):
        self.connector = connector
        self.session = entry.session
        # The driver's, for threads.
        self.connection = entry.connection
        self._lock = asyncio.Lock()
        # Done when a thread doesn't use the connection anymore; None unless
        # one does.
        self._pending = None
        self._was_interrupted = False
        # Those whose users may not have closed them.
        self._cursors = weakref.WeakSet()

    def __repr__(self):
        return "<%s %s>" % (type(self).__name__, self.session.wrapper.vendor)

    def cursor(self):
        """Return a cursor. It's made when it's first used."""
        cursor = ThreadedCursor(self)
        self._cursors.add(cursor)
        return cursor

    async def execute(self, sql, params=None):
        """Return a new cursor that has executed a statement."""
        cursor = self.cursor()
        await cursor.execute(sql, params)
        return cursor

    async def begin(self):
        """Begin a transaction."""
        await self.run(self._begin)

    async def end(self, commit):
        """End the transaction."""
        await self.run(self._end, commit)

    async def commit(self):
        """Commit the transaction, if there is one."""
        await self.run(self.connection.commit)

    async def rollback(self):
        """Roll back the transaction, if there is one."""
        await self.run(self.connection.rollback)

    async def close(self):
        """Close the connection. The pool replaces it."""
        await self.run(self.connection.close)

    def _begin(self):
        wrapper = self.session.wrapper
        if hasattr(wrapper, "_start_transaction_under_autocommit"):
            # SQLite, as set_autocommit() does it.
            wrapper._start_transaction_under_autocommit()
        else:
            wrapper._set_autocommit(False)

    def _end(self, commit):
        wrapper = self.session.wrapper
        try:
            (self.connection.commit if commit else self.connection.rollback)()
        finally:
            if not hasattr(wrapper, "_start_transaction_under_autocommit"):
                wrapper._set_autocommit(self.connector.autocommit)

    async def run(self, function, *args):
        """Call a function that uses the connection, in a thread."""
        lock = self._lock
        async with lock:
            validate_lock(self, lock)
            if self._pending is not None:
                await asyncio.shield(asyncio.wrap_future(self._pending))
            pending = self._pending = Future()
            # Held while the call is interrupted, which it has to be before its
            # end, and where that is written down.
            guard = threading.Lock()
            ended = threading.Event()

            def call():
                try:
                    return function(*args)
                finally:
                    with guard:
                        ended.set()
                    # Without the lock, for it calls others.
                    pending.set_result(None)

            try:
                future = call_in_thread(call)
            except BaseException:
                # There is no loop, or no thread, anymore.
                pending.set_result(None)
                self._pending = None
                raise
            try:
                return await future
            except asyncio.CancelledError:
                self._was_interrupted = True
                workers.run(functools.partial(self._interrupt, guard, ended))
                raise
            finally:
                if pending.done():
                    self._pending = None

    def _interrupt(self, guard, ended):
        """Interrupt what a thread is doing, or is just about to do."""
        pause = SHORTEST_PAUSE
        while True:
            with guard:
                if ended.is_set():
                    return
                try:
                    self.connector.interrupt(self.connection)
                except Exception as e:
                    # It can't be interrupted.
                    logger.debug(
                        "Interrupting a statement raised %s.", type(e).__name__
                    )
                    return
            ended.wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def leave(self):
        """Do what leave_loop() of the connector promises."""
        # For those who wait for the other one it's too late.
        self._lock = asyncio.Lock()
        if self._pending is None:
            self._abandon_cursors()
        else:
            self._pending.add_done_callback(self._abandon_cursors)
        if self._was_interrupted and self._pending is None:
            return NOTHING_PENDING
        return self._pending

    def _abandon_cursors(self, pending=None):
        # SQLite would go on locking what they read, even after the connection
        # is closed, and a traceback may keep them alive.
        for cursor in list(self._cursors):
            cursor.connection = cursor.cursor = None
        self._cursors.clear()


class ThreadedCursor:
    """A cursor of a ThreadedConnection: Django's own for the backend."""

    def __init__(self, connection):
        self.connection = connection
        # Django's, for threads.
        self.cursor = None

    def __getattr__(self, name):
        # What it knows without using the connection: description and so on.
        cursor = self.__dict__.get("cursor")
        if cursor is None:
            raise AttributeError(
                "%r has executed nothing yet, so it has no %r."
                % (type(self).__name__, name)
            )
        return getattr(cursor, name)

    async def __aenter__(self):
        return self

    async def __aexit__(self, exc_type, exc_value, traceback):
        await self.close()

    async def __aiter__(self):
        while rows := await self.fetchmany(100):
            for row in rows:
                yield row

    async def execute(self, sql, params=None):
        self._note(sql)
        args = (sql,) if params is None else (sql, params)
        await self._call("execute", *args)
        return self

    async def executemany(self, sql, param_list):
        self._note(sql)
        await self._call("executemany", sql, param_list)
        return self

    async def callproc(self, procname, *args):
        self._note("CALL %s()" % procname)
        return await self._call("callproc", procname, *args)

    async def fetchone(self):
        return await self._call("fetchone")

    async def fetchmany(self, *args):
        return await self._call("fetchmany", *args)

    async def fetchall(self):
        return await self._call("fetchall")

    async def close(self):
        if self.cursor is not None:
            await self._call("close")

    def _note(self, sql):
        connection = self._get_connection()
        note_statement(connection.connector, connection.session, sql)

    def _get_connection(self):
        if self.connection is None:
            raise InterfaceError(
                "The connection of this cursor was given back, and may be in use "
                "by others. Get a new cursor."
            )
        return self.connection

    async def _call(self, name, *args):
        return await self._get_connection().run(self._call_now, name, *args)

    def _call_now(self, name, *args):
        if self.cursor is None:
            self.cursor = self.connection.session.wrapper.create_cursor()
        return getattr(self.cursor, name)(*args)
