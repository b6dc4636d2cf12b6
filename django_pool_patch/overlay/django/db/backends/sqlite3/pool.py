"""SQLite's part of pooling."""

from django.db.backends.base.pool import DatabaseConnector as BaseDatabaseConnector
from django.db.backends.sqlite3.statements import SESSION_STATEMENTS


class DatabaseConnector(BaseDatabaseConnector):
    ping_after = 30.0
    session_statements = SESSION_STATEMENTS
    can_detach_cursors = True
    knows_transactions = True
    cursor_attributes = ("arraysize", "row_factory")

    @classmethod
    def can_pool(cls, wrapper):
        # A database in memory is gone when its last connection is closed, and
        # may belong to one connection alone.
        return not wrapper.is_in_memory_db()

    def is_clean(self, entry):
        session = entry.session
        connection = entry.connection
        return (
            not session.is_suspect
            and not connection.in_transaction
            and self.read_state(connection) == session.initial_state
        )

    def abandon_cursor(self, cursor):
        # What it was reading isn't locked any longer.
        cursor.close()

    def interrupt(self, connection):
        connection.interrupt()

    def read_state(self, connection):
        # sqlite3's isolation_level stands for autocommit.
        return (
            connection.isolation_level,
            connection.row_factory,
            connection.text_factory,
        )

    def restore_state(self, entry):
        connection = entry.connection
        (
            connection.isolation_level,
            connection.row_factory,
            connection.text_factory,
        ) = entry.session.initial_state

    def roll_back_if_needed(self, entry):
        if entry.connection.in_transaction:
            entry.connection.rollback()
