"""psycopg's AsyncConnection on a pooled connection."""

from concurrent.futures import Future

import psycopg

from django.db.backends.base.loops import note_statement

# PQTRANS_ACTIVE of libpq: a command is in progress.
TRANSACTION_STATUS_ACTIVE = 1

# A future that is done: the connection can be closed.
NOTHING_PENDING = Future()
NOTHING_PENDING.set_result(None)


class NotingCursorMixin:
    """Note statements that touch the session."""

    async def execute(self, query, params=None, **kwargs):
        connection = self.connection
        note_statement(connection.connector, connection.session, query)
        return await super().execute(query, params, **kwargs)

    async def executemany(self, query, *args, **kwargs):
        connection = self.connection
        note_statement(connection.connector, connection.session, query)
        return await super().executemany(query, *args, **kwargs)

    def copy(self, statement, *args, **kwargs):
        connection = self.connection
        note_statement(connection.connector, connection.session, statement)
        return super().copy(statement, *args, **kwargs)


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
        self._initial_state = self._get_state()

    def __del__(self):
        # The pool closes what it opened, so there's nothing to warn about.
        pass

    def _get_state(self):
        return self.autocommit, self.isolation_level, self.read_only, self.deferrable

    async def begin(self):
        """Begin a transaction at the next statement."""
        await self.set_autocommit(False)

    async def end(self, commit):
        """End the transaction."""
        try:
            await (self.commit() if commit else self.rollback())
        finally:
            if not self.closed:
                await self.set_autocommit(self._initial_state[0])

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
        ):
            return NOTHING_PENDING
        if self._get_state() != self._initial_state:
            # The next user gets another object.
            self.session.in_loop = None
        return None
