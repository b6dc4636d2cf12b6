"""Oracle's part of pooling."""

from django.db.backends.base.pool import DatabaseConnector as BaseDatabaseConnector
from django.db.backends.oracle.statements import SESSION_STATEMENTS


class DatabaseConnector(BaseDatabaseConnector):
    ping_after = 30.0
    facts = ("oracle_version",)
    session_statements = SESSION_STATEMENTS
    knows_transactions = True

    def watch(self, connection):
        # The driver keeps its socket to itself, but looks at it when asked.
        return lambda milliseconds: not connection.is_healthy()

    def is_hung_up(self, events):
        return True

    def is_clean(self, entry):
        session = entry.session
        connection = entry.connection
        return (
            not session.is_suspect
            and connection.is_healthy()
            and not connection.transaction_in_progress
            and self.read_state(connection) == session.initial_state
        )

    def read_state(self, connection):
        return connection.autocommit, connection.stmtcachesize, connection.call_timeout

    def restore_state(self, entry):
        connection = entry.connection
        (
            connection.autocommit,
            connection.stmtcachesize,
            connection.call_timeout,
        ) = entry.session.initial_state

    def roll_back_if_needed(self, entry):
        if entry.connection.transaction_in_progress:
            entry.connection.rollback()

    def interrupt(self, connection):
        connection.cancel()

    def connection_limit(self, wrapper):
        with wrapper.cursor() as cursor:
            # Needs a privilege that applications seldom have.
            cursor.execute("SELECT value FROM v$parameter WHERE name = 'processes'")
            row = cursor.fetchone()
        return int(row[0]) if row else None
