"""PostgreSQL's part of pooling, for psycopg and psycopg2."""

from operator import attrgetter

from django.db.backends.base.pool import DatabaseConnector as BaseDatabaseConnector
from django.db.backends.postgresql.psycopg_any import is_psycopg3
from django.db.backends.postgresql.statements import SESSION_STATEMENTS

# PQTRANS_IDLE of libpq: connected, and not in a transaction.
TRANSACTION_STATUS_IDLE = 0

if is_psycopg3:
    from psycopg import Cursor

    from django.db.backends.postgresql.loops import STATE, AsyncConnection, get_state

    # One call at each return, in the place of several.
    get_state_and_status = attrgetter(*STATE, "pgconn.transaction_status")

    def is_idle(connection):
        """Return whether a connection is well, and not in a transaction."""
        return connection.pgconn.transaction_status == TRANSACTION_STATUS_IDLE

else:

    def is_idle(connection):
        """Return whether a connection is well, and not in a transaction."""
        return connection.get_transaction_status() == TRANSACTION_STATUS_IDLE


class DatabaseConnector(BaseDatabaseConnector):
    ping_after = 30.0
    facts = ("pg_version",)
    session_statements = SESSION_STATEMENTS
    can_detach_cursors = True
    can_reset_session = True
    knows_transactions = True

    def fileno(self, connection):
        return connection.fileno()

    if is_psycopg3:

        def read_state(self, connection):
            # As it is between transactions.
            return (*get_state(connection), TRANSACTION_STATUS_IDLE)

        def is_clean(self, entry):
            session = entry.session
            return (
                not session.is_suspect
                and get_state_and_status(entry.connection) == session.initial_state
            )

        def restore_state(self, entry):
            connection = entry.connection
            if self.read_state(connection) != entry.session.initial_state:
                (
                    connection.autocommit,
                    connection.isolation_level,
                    connection.read_only,
                    connection.deferrable,
                    connection.row_factory,
                    connection.cursor_factory,
                    _,
                ) = entry.session.initial_state

    else:

        def is_clean(self, entry):
            session = entry.session
            connection = entry.connection
            return (
                not session.is_suspect
                and is_idle(connection)
                and self.read_state(connection) == session.initial_state
            )

        def read_state(self, connection):
            return connection.autocommit, connection.isolation_level

        def restore_state(self, entry):
            connection = entry.connection
            autocommit, isolation_level = entry.session.initial_state
            if self.read_state(connection) != entry.session.initial_state:
                # In autocommit mode the level is set at the server.
                connection.autocommit = False
                connection.isolation_level = isolation_level
                connection.autocommit = autocommit

    def roll_back_if_needed(self, entry):
        connection = entry.connection
        if is_idle(connection):
            return
        connection.rollback()
        if not is_idle(connection):
            # In autocommit mode psycopg2 doesn't believe in transactions, but
            # somebody may have begun one by hand.
            with connection.cursor() as cursor:
                cursor.execute("ROLLBACK")

    def reset_session(self, entry):
        connection = entry.connection
        # DISCARD ALL can't run in a transaction.
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("DISCARD ALL")
        # What psycopg has received for a user who was listening.
        if backlog := getattr(connection, "_notifies_backlog", None):
            backlog.clear()
        entry.session.in_loop = None
        self.initialize(entry)

    def is_buffered(self, cursor, is_named):
        return not is_named

    def abandon_cursor(self, cursor):
        if is_psycopg3:
            # Server-side cursors would tell the server.
            Cursor.close(cursor)

    if is_psycopg3:

        def enter_loop(self, entry, loop):
            prepare = super().enter_loop(entry, loop)
            entry.connection_in_loop.enter()
            return prepare

        def make_connection_in_loop(self, entry, loop):
            return AsyncConnection(self, entry)

    else:

        def interrupt(self, connection):
            connection.cancel()

    def connection_limit(self, wrapper):
        with wrapper.cursor() as cursor:
            cursor.execute("""
                SELECT current_setting('max_connections')::integer
                     - current_setting('superuser_reserved_connections')::integer
                """)
            return cursor.fetchone()[0]
