"""PostgreSQL's part of pooling, for psycopg and psycopg2."""

from django.db.backends.base.pool import DatabaseConnector as BaseDatabaseConnector

# PQTRANS_IDLE of libpq: connected, and not in a transaction.
TRANSACTION_STATUS_IDLE = 0


class DatabaseConnector(BaseDatabaseConnector):
    ping_after = 30.0
    facts = ("pg_version",)

    def fileno(self, connection):
        return connection.fileno()

    def is_clean(self, entry):
        session = entry.session
        connection = entry.connection
        return (
            not session.is_suspect
            # Also false when the connection is closed or broken.
            and connection.info.transaction_status == TRANSACTION_STATUS_IDLE
            and self.read_state(connection) == session.initial_state
        )

    def read_state(self, connection):
        return connection.autocommit, connection.isolation_level

    def restore_state(self, entry):
        connection = entry.connection
        autocommit, isolation_level = entry.session.initial_state
        if self.read_state(connection) != entry.session.initial_state:
            # This order suits psycopg2, where the level is set at the server
            # in autocommit mode.
            connection.autocommit = False
            connection.isolation_level = isolation_level
            connection.autocommit = autocommit

    def roll_back_if_needed(self, entry):
        connection = entry.connection
        if connection.info.transaction_status == TRANSACTION_STATUS_IDLE:
            return
        connection.rollback()
        if connection.info.transaction_status != TRANSACTION_STATUS_IDLE:
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
        self.initialize(entry)
        return True

    def connection_limit(self, wrapper):
        with wrapper.cursor() as cursor:
            cursor.execute("""
                SELECT current_setting('max_connections')::integer
                     - current_setting('superuser_reserved_connections')::integer
                """)
            return cursor.fetchone()[0]
