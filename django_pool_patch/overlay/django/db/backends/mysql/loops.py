"""mysqlclient's connections, used by the tasks of an event loop."""

import asyncio
import struct
from asyncio import _get_running_loop
from concurrent.futures import Future
from contextlib import closing, suppress

from MySQLdb import OperationalError, ProgrammingError

from django.db.backends.base.loops import (
    NOTHING_PENDING,
    note_statement,
    validate_lock,
)
from django.db.backends.mysql.base import CursorWrapper
from django.db.backends.mysql.pool import NO_MORE_RESULTS, discard_results
from django.db.pool.asyncio import call_in_thread
from django.db.utils import IntegrityError

try:
    import fcntl
    import termios
except ImportError:
    # Windows, whose event loops can't watch mysqlclient's sockets anyway.
    fcntl = None

# Bytes. Servers send rows whenever they have got so many of them, and the rest
# at the end of a statement. When less has come, there's nothing more to wait
# for. A statement longer than this isn't sent without waiting either.
NET_BUFFER_LENGTH = 16384


class AsyncConnection:
    """
    A connection used by the tasks of a loop, one statement at a time.

    mysqlclient sends a statement, and reads the result, by functions of their
    own; between these, the loop watches the socket. What would block
    nevertheless, like reading a large result, a thread does.

    Cancelling a statement closes the connection: the answer would be taken for
    the next statement's.
    """

    def __init__(self, connector, entry, loop):
        self.connector = connector
        self.session = entry.session
        # The driver's, for threads.
        self.connection = entry.connection
        self._loop = loop
        self._lock = asyncio.Lock()
        # Done when no thread uses the connection anymore; None unless a
        # statement is in progress.
        self._pending = None
        # Done when the socket can be read; None unless the loop watches it.
        self._readable = None
        # Whether the last statement has more results, to be read or not.
        self._has_more = False

    def __repr__(self):
        return "<%s %s>" % (type(self).__name__, self.session.wrapper.vendor)

    def cursor(self):
        """Return a cursor."""
        return AsyncCursor(self)

    async def execute(self, query, args=None):
        """Return a new cursor that has executed a statement."""
        cursor = self.cursor()
        await cursor.execute(query, args)
        return cursor

    async def begin(self):
        """Begin a transaction."""
        await self.query(b"BEGIN")
        # The driver doesn't tell, so it's rolled back unless end() is called.
        self.session.is_suspect = True

    async def end(self, commit):
        """End the transaction."""
        await self.query(b"COMMIT" if commit else b"ROLLBACK")
        if not self.session.is_touched:
            self.session.is_suspect = False

    async def commit(self):
        """Commit the transaction, if there is one."""
        await self.query(b"COMMIT")

    async def rollback(self):
        """Roll back the transaction, if there is one."""
        await self.query(b"ROLLBACK")

    async def close(self):
        """Close the connection. The pool replaces it."""
        self.connection.close()

    async def query(self, query):
        """
        Execute a statement, in bytes, and return its first result as
        store_result() does, and what there is to know about it.
        """
        lock = self._lock
        async with lock:
            self._validate(lock)
            self._pending = NOTHING_PENDING
            if fcntl is None or self._has_more or len(query) > NET_BUFFER_LENGTH:
                result = await self._call_in_thread(self._query_now, query)
            else:
                try:
                    self.connection.send_query(query)
                except BaseException:
                    self._pending = None
                    raise
                await self._wait_until_readable()
                result = await self._read()
            # Not in a finally clause: whoever is cancelled leaves it pending.
            self._pending = None
            if isinstance(result, Exception):
                raise result
            return result

    def _query_now(self, query):
        self._discard_results()
        self.connection.query(query)
        return self._store()

    def _discard_results(self):
        # What was left unread is in the way of any other command.
        if self._has_more:
            discard_results(self.connection)
            self._has_more = False

    async def _wait_until_readable(self):
        loop = self._loop
        fileno = self.connection.fileno()
        future = self._readable = loop.create_future()
        loop.add_reader(fileno, self._wake, future)
        try:
            await future
        finally:
            if self._readable is future:
                self._readable = None
                loop.remove_reader(fileno)

    @staticmethod
    def _wake(future):
        if not future.done():
            future.set_result(None)

    async def _read(self):
        connection = self.connection
        pending = fcntl.ioctl(connection.fileno(), termios.FIONREAD, b"\0" * 4)
        is_large = struct.unpack("i", pending)[0] >= NET_BUFFER_LENGTH
        try:
            connection.read_query_result()
            if not is_large:
                return self._store()
        except connection.Error as e:
            return e
        return await self._call_in_thread(self._store)

    def _store(self):
        connection = self.connection
        result = connection.store_result()
        if result is None:
            description, rows = None, ()
        else:
            description, rows = result.describe(), result.fetch_row(0)
        self._has_more = connection.more_results()
        return (
            rows,
            description,
            connection.affected_rows(),
            connection.insert_id(),
            self._has_more,
        )

    async def _call_in_thread(self, function, *args):
        """Return what a function returns, or the error that it raises."""
        pending = self._pending = Future()

        def call():
            try:
                return function(*args)
            except Exception as e:
                return e
            finally:
                pending.set_result(None)

        try:
            future = call_in_thread(call)
        except BaseException:
            # There is no loop, or no thread, anymore.
            pending.set_result(None)
            raise
        return await future

    async def run(self, function, *args):
        """Call a function that uses the connection, in a thread."""
        lock = self._lock
        async with lock:
            self._validate(lock)
            result = await self._call_in_thread(function, *args)
            self._pending = None
            if isinstance(result, Exception):
                raise result
            return result

    def _validate(self, lock):
        validate_lock(self, lock)
        if self._pending is not None:
            raise OperationalError(
                2014, "A statement was cancelled, so the connection can't be used."
            )

    async def next_result(self):
        """Return what query() returns, of the statement's next result."""
        return await self.run(self._next_result)

    def _next_result(self):
        if self.connection.next_result() == NO_MORE_RESULTS:
            self._has_more = False
            return None
        return self._store()

    def leave(self):
        """Do what leave_loop() of the connector promises."""
        # For those who wait for the other one it's too late.
        self._lock = asyncio.Lock()
        if self._readable is not None and _get_running_loop() is self._loop:
            # Another task is waiting for an answer. The descriptor is about to
            # be closed, of which the loop wouldn't be told.
            readable, self._readable = self._readable, None
            self._loop.remove_reader(self.connection.fileno())
            if not readable.done():
                readable.set_exception(
                    OperationalError(2013, "The connection was given back.")
                )
        if self._pending is NOTHING_PENDING:
            with suppress(self.connection.Error):
                # Here, where no thread can be using it.
                self.connection.close()
        elif self._has_more:
            # Reading it may take a while.
            self.session.is_suspect = True
        return self._pending


class AsyncCursor:
    """
    A cursor whose results are kept in the process, as mysqlclient's default
    is.
    """

    arraysize = 1

    def __init__(self, connection):
        self.connection = connection
        self._clear()

    def _clear(self):
        self.description = None
        self.rowcount = -1
        self.lastrowid = None
        self._rows = None
        self._position = 0
        # What ops.last_executed_query() looks at.
        self._executed = None
        self._has_more = False

    async def __aenter__(self):
        return self

    async def __aexit__(self, exc_type, exc_value, traceback):
        await self.close()

    async def __aiter__(self):
        while (row := await self.fetchone()) is not None:
            yield row

    async def execute(self, query, args=None):
        connection = self._get_connection()
        note_statement(connection.connector, connection.session, query)
        self._clear()
        self._executed = self._bind(query, args)
        try:
            self._take(await connection.query(self._executed))
        except OperationalError as e:
            # As Django's cursor does for threads.
            if e.args[0] in CursorWrapper.codes_for_integrityerror:
                raise IntegrityError(*e.args)
            raise
        return self.rowcount

    async def executemany(self, query, param_list):
        connection = self._get_connection()
        note_statement(connection.connector, connection.session, query)
        self._clear()

        def executemany():
            connection._discard_results()
            # It makes one statement of many rows.
            with closing(connection.session.wrapper.create_cursor()) as cursor:
                cursor.executemany(query, param_list)
                return cursor.rowcount, cursor.lastrowid, cursor._executed

        result = await connection.run(executemany)
        self.rowcount, self.lastrowid, self._executed = result
        self._rows = ()
        return self.rowcount

    async def callproc(self, procname, args=()):
        literals = b",".join(map(self._get_connection().connection.literal, args))
        await self.execute(b"CALL %s(%s)" % (procname.encode(), literals))
        return args

    async def fetchone(self):
        rows = self._get_rows()
        if self._position >= len(rows):
            return None
        self._position += 1
        return rows[self._position - 1]

    async def fetchmany(self, size=None):
        rows = self._get_rows()
        begin = self._position
        end = begin + (self.arraysize if size is None else size)
        self._position = min(end, len(rows))
        return rows[begin:end]

    async def fetchall(self):
        rows = self._get_rows()
        begin, self._position = self._position, len(rows)
        return rows[begin:] if begin else rows

    async def nextset(self):
        """Go on to the next result. Return None if there is none."""
        if not self._has_more:
            return None
        result = await self._get_connection().next_result()
        if result is None:
            return None
        self._take(result)
        return True

    async def close(self):
        self.connection = self._rows = None

    def _bind(self, query, args):
        connection = self.connection.connection
        if isinstance(query, str):
            query = query.encode(connection.encoding)
        if args is None:
            return bytes(query)
        if isinstance(args, dict):
            values = {
                key.encode(connection.encoding): connection.literal(value)
                for key, value in args.items()
            }
        else:
            values = tuple(map(connection.literal, args))
        try:
            return query % values
        except TypeError as e:
            raise ProgrammingError(str(e)) from e

    def _take(self, result):
        rows, self.description, self.rowcount, self.lastrowid, self._has_more = result
        self._rows = rows
        self._position = 0

    def _get_connection(self):
        if self.connection is None:
            raise ProgrammingError("cursor closed")
        return self.connection

    def _get_rows(self):
        self._get_connection()
        if self._rows is None:
            raise ProgrammingError("execute() first")
        return self._rows
