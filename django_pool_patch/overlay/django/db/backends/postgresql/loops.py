"""psycopg's AsyncConnection on a pooled connection."""

import asyncio
from operator import attrgetter

import psycopg
from psycopg import sql

from django.db.backends.base.loops import NOTHING_PENDING, note_statement

# PQTRANS_IDLE and PQTRANS_ACTIVE of libpq: there is no transaction, and a
# command is in progress.
TRANSACTION_STATUS_IDLE = 0
TRANSACTION_STATUS_ACTIVE = 1

# What a user may have changed of one of psycopg's connections. It's asked at
# each return, and what the properties of these names do takes several times as
# long.
STATE = [
    "_autocommit",
    "_isolation_level",
    "_read_only",
    "_deferrable",
    "row_factory",
    "cursor_factory",
]

get_state = attrgetter(*STATE)


class NotingCursorMixin:
    """Note statements that touch the session."""

    # These return what is to be awaited, as coroutines do.

    def execute(self, query, params=None, **kwargs):
        connection = self.connection
        if not connection.is_plain(query):
            note_statement(connection.connector, connection.session, query)
        return super().execute(query, params, **kwargs)

    def executemany(self, query, *args, **kwargs):
        connection = self.connection
        note_statement(connection.connector, connection.session, query)
        return super().executemany(query, *args, **kwargs)

    def copy(self, statement, *args, **kwargs):
        connection = self.connection
        note_statement(connection.connector, connection.session, statement)
        return super().copy(statement, *args, **kwargs)

    def stream(self, query, *args, **kwargs):
        connection = self.connection
        note_statement(connection.connector, connection.session, query)
        return super().stream(query, *args, **kwargs)

    async def callproc(self, name, args=None):
        if not isinstance(name, sql.Identifier):
            name = sql.Identifier(name)
        arguments = sql.SQL(",").join(map(sql.Literal, args or ()))
        await self.execute(sql.SQL("SELECT * FROM {}({})").format(name, arguments))
        return args


class AsyncCursor(NotingCursorMixin, psycopg.AsyncClientCursor):
    pass


class AsyncServerBindingCursor(NotingCursorMixin, psycopg.AsyncCursor):
    pass


class AsyncConnection(psycopg.AsyncConnection):
    """
    A connection that was opened by a thread, for the tasks of a loop.

    psycopg's two classes are two ways to wait for one libpq connection. What
    they know of it besides is handed over by the attributes in which both keep
    it; psycopg has no other way.
    """

    def __init__(self, connector, entry):
        connection = entry.connection
        pgconn = connection.pgconn
        self._thread_handlers = pgconn.notice_handler, pgconn.notify_handler
        super().__init__(pgconn)
        self._loop_handlers = pgconn.notice_handler, pgconn.notify_handler
        self.connector = connector
        self.session = entry.session
        self.is_plain = self.session.is_plain
        self.row_factory = psycopg.rows.tuple_row
        options = self.session.wrapper.settings_dict["OPTIONS"]
        self.cursor_factory = (
            AsyncServerBindingCursor
            if options.get("server_side_binding") is True
            else AsyncCursor
        )
        self._adapters = connection.adapters
        # The names of prepared statements are unique only within one of these.
        self._prepared = connection._prepared
        for name in ("_autocommit", "_isolation_level", "_read_only", "_deferrable"):
            setattr(self, name, getattr(connection, name))
        self._initial_state = get_state(self)

    def __del__(self):
        # The pool closes what it opened, so there's nothing to warn about.
        pass

    def cursor(self, name="", **kwargs):
        if name:
            # It exists on the server too, and may outlive its transaction.
            self.session.is_touched = self.session.is_suspect = True
        return super().cursor(name, **kwargs)

    async def begin(self):
        """Begin a transaction."""
        await self.set_autocommit(False)
        # The first statement would do it. But if that is cancelled before the
        # server has begun, psycopg goes on, and executes the statement.
        async with self.lock:
            await self.wait(self._start_query())

    async def end(self, commit):
        """End the transaction."""
        try:
            await (self.commit() if commit else self.rollback())
        finally:
            # Otherwise it isn't used anymore, or the next user gets another
            # object.
            if self.pgconn.transaction_status == TRANSACTION_STATUS_IDLE:
                await self.set_autocommit(self._initial_state[0])

    async def cancel_safe(self, **kwargs):
        """
        Have the server cancel what it's executing. psycopg does so when a task
        is cancelled; if that is cancelled again, the server is told all the
        same.
        """
        await asyncio.shield(super().cancel_safe(**kwargs))

    def enter(self):
        self.pgconn.notice_handler, self.pgconn.notify_handler = self._loop_handlers

    def leave(self):
        """Do what leave_loop() of the connector promises."""
        self.pgconn.notice_handler, self.pgconn.notify_handler = self._thread_handlers
        if self.closed:
            return None
        if (
            self._pipeline is not None
            or self.pgconn.transaction_status == TRANSACTION_STATUS_ACTIVE
            # Other tasks are waiting for their turn, and one of them may be
            # about to have it.
            or self.lock.locked()
            or self.lock._waiters
        ):
            # Here, where no thread can be using it.
            self.pgconn.finish()
            return NOTHING_PENDING
        if (
            self._notice_handlers
            or self._notify_handlers
            or get_state(self) != self._initial_state
        ):
            # The next user gets another object.
            self.session.in_loop = None
        return None
