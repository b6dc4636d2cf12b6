"""The part of MySQL and MariaDB in pooling."""

from MySQLdb.cursors import CursorStoreResultMixIn

from django.db.backends.base.pool import DatabaseConnector as BaseDatabaseConnector
from django.db.backends.mysql.statements import SESSION_STATEMENTS

# What next_result() returns when nothing is left to read.
NO_MORE_RESULTS = -1


def discard_results(connection):
    """Read what is left of a statement's results."""
    connection.discard_result()
    while connection.next_result() != NO_MORE_RESULTS:
        connection.discard_result()


class DatabaseConnector(BaseDatabaseConnector):
    ping_after = 30.0
    facts = ("mysql_server_data",)
    session_statements = SESSION_STATEMENTS
    can_detach_cursors = True

    def __init__(self, wrapper):
        super().__init__(wrapper)
        # What was learned of servers, by the version that they greet with.
        self._server_data = {}

    def open(self):
        connection = super().open()
        if known := self._server_data.get(connection.get_server_info()):
            # A wrapper asks for that once in its life. So does the pool,
            # unless it's another server by now.
            self.get_opening_wrapper(connection).mysql_server_data = known
        return connection

    def configure(self, entry):
        super().configure(entry)
        server_info = entry.connection.get_server_info()
        self._server_data[server_info] = entry.facts["mysql_server_data"]

    def fileno(self, connection):
        return connection.fileno()

    def is_clean(self, entry):
        session = entry.session
        connection = entry.connection
        try:
            return (
                not session.is_suspect
                and self.autocommit
                and connection.get_autocommit()
                and connection.next_result() == NO_MORE_RESULTS
            )
        except connection.Error:
            # Rows of an unbuffered cursor that nobody read.
            session.is_suspect = True
            return False

    def roll_back_if_needed(self, entry):
        # What was left unread is in the way of any other command.
        discard_results(entry.connection)
        entry.connection.rollback()

    def is_buffered(self, cursor, is_named):
        # Rows are read from the server as they are wanted if OPTIONS ask for
        # such a cursor.
        return isinstance(cursor.cursor, CursorStoreResultMixIn)

    def detach_cursor(self, cursor):
        # Neither does it look for more results when it's closed.
        cursor.cursor.connection = None

    abandon_cursor = detach_cursor

    def make_connection_in_loop(self, entry, loop):
        # That module needs the backend's base, which needs this one.
        from django.db.backends.mysql.loops import AsyncConnection

        return AsyncConnection(self, entry, loop)

    def connection_limit(self, wrapper):
        with wrapper.cursor() as cursor:
            cursor.execute("SELECT @@max_connections")
            return cursor.fetchone()[0]
