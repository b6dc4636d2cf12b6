"""
A database of its own for a test, on the server that a test run shares: nobody
else is connected to it, so that the server's connections can be counted.
"""

import contextlib
import os
import sqlite3
import tempfile
import threading
import time
from collections import deque
from unittest import mock

import servers

from django.db import connection, connections
from django.db.pool import pools
from django.db.utils import ConnectionHandler

VENDORS = {"postgresql", "mysql", "sqlite"}

HAS_SERVER = connection.vendor in {"postgresql", "mysql"}

# Seconds within which even a busy server has noticed that a connection was
# closed.
NOTICE = 5.0


class PrivateDatabase:
    """
    A database with an app's table for a model NumberRow, which has the rows 1
    to 3, and an empty table `written_row`.

    close() drops it.
    """

    def __init__(self, app_label, server=None):
        self.vendor = connection.vendor
        self.name = "%s_%d" % (app_label, os.getpid())
        self.table = "%s_numberrow" % app_label
        self.directory = None
        self.server = server
        if HAS_SERVER:
            self.server = server or servers.shared_server(self.vendor)
            self.server.drop_database(self.name)
            self.server.create_database(self.name)
            self.settings = {
                **self.server.settings(self.name),
                "OPTIONS": dict(connection.settings_dict["OPTIONS"]),
            }
            # With the subclass of a backend that the settings may name.
            self.settings["ENGINE"] = connection.settings_dict["ENGINE"]
        else:
            self.directory = tempfile.TemporaryDirectory(prefix="pool-")
            self.settings = {
                "ENGINE": connection.settings_dict["ENGINE"],
                "NAME": os.path.join(self.directory.name, "db.sqlite3"),
                "OPTIONS": dict(connection.settings_dict["OPTIONS"]),
            }
        self.execute(
            "CREATE TABLE %s (id integer PRIMARY KEY, number integer NOT NULL)"
            % self.table
        )
        self.execute("CREATE TABLE written_row (number integer NOT NULL)")
        self.execute("INSERT INTO %s VALUES (1, 1), (2, 2), (3, 3)" % self.table)

    def close(self):
        if HAS_SERVER:
            self.server.terminate_connections(self.name)
            self.server.drop_database(self.name)
        else:
            self.directory.cleanup()

    def connect(self):
        """Return a driver's connection that no pool knows about."""
        if HAS_SERVER:
            return self.server.connect(self.name)
        return sqlite3.connect(self.settings["NAME"], isolation_level=None)

    def execute(self, sql):
        with contextlib.closing(self.connect()) as client:
            with contextlib.closing(client.cursor()) as cursor:
                cursor.execute(sql)
                return list(cursor.fetchall()) if cursor.description else []

    @contextlib.contextmanager
    def locked_rows(self):
        """Within the block, changing one of the rows has to wait."""
        with contextlib.closing(self.connect()) as client:
            with contextlib.closing(client.cursor()) as cursor:
                cursor.execute("BEGIN")
                cursor.execute("UPDATE %s SET number = number + 100" % self.table)
                yield
                cursor.execute("ROLLBACK")

    def connection_count(self):
        return self.server.connection_count(self.name)

    def updating_sessions(self):
        """Return the identifiers of the sessions that execute an UPDATE."""
        sql = {
            "postgresql": "SELECT pid FROM pg_stat_activity WHERE datname = '%s' "
            "AND state = 'active' AND query LIKE 'UPDATE%%'",
            "mysql": "SELECT id FROM information_schema.processlist "
            "WHERE db = '%s' AND info LIKE 'UPDATE%%'",
        }[self.vendor]
        return [session for session, in self.server.execute(sql % self.name)]

    def end_session(self, session):
        """Have the server close a connection."""
        self.server.execute(
            "SELECT pg_terminate_backend(%d)" % session
            if self.vendor == "postgresql"
            else "KILL %d" % session
        )


@contextlib.contextmanager
def alias_for(database, alias, **options):
    """Have an alias, with a pool, for a PrivateDatabase. Yield the pool."""
    if HAS_SERVER:
        # Or else those of the pool before would count as this one's.
        database.server.wait_for_connection_count(0, database.name)
    handler = ConnectionHandler(
        {"default": {**database.settings, "POOL": {"timeout": 60, **options}}}
    )
    connections.settings[alias] = handler.settings["default"]
    pool = pools[alias]
    try:
        yield pool
    finally:
        connections[alias].close()
        pools.close_pool(pool)
        del connections[alias]
        del connections.settings[alias]


class Meter:
    """
    Measure how many connections a pool has open at the same time, where it
    opens and closes them. `highest` is the most there have been.
    """

    def __init__(self, pool):
        self.open_now = self.highest = 0
        self._lock = threading.Lock()
        self._connector = pool.connector

    def __enter__(self):
        self._open, self._close = self._connector.open, self._connector.close
        self._patches = [
            mock.patch.object(self._connector, "open", self.open),
            mock.patch.object(self._connector, "close", self.close),
        ]
        for patch in self._patches:
            patch.start()
        return self

    def __exit__(self, exc_type, exc_value, traceback):
        for patch in self._patches:
            patch.stop()

    def open(self):
        with self._lock:
            self.open_now += 1
            self.highest = max(self.highest, self.open_now)
        try:
            return self._open()
        except BaseException:
            with self._lock:
                self.open_now -= 1
            raise

    def close(self, driver_connection):
        try:
            self._close(driver_connection)
        finally:
            with self._lock:
                self.open_now -= 1


class Sampler:
    """
    Count a database's connections at the server, again and again, in a thread.

    Servers notice late that a connection was closed, so what the pool has
    closed recently, as `get_closed` tells, may still be among them. `highest`
    is the most that there were besides.
    """

    def __init__(self, database, get_closed=lambda: 0):
        self.database = database
        self.get_closed = get_closed
        self.highest = self.samples = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler")
        self._error = None

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, exc_type, exc_value, traceback):
        self._stop.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self):
        try:
            self._sample()
        except Exception as e:
            self._error = e

    def _sample(self):
        sql = {
            "postgresql": "SELECT count(*) FROM pg_stat_activity WHERE datname = '%s'",
            "mysql": "SELECT count(*) FROM information_schema.processlist "
            "WHERE db = '%s'",
        }[self.database.vendor]
        closings = deque()
        with contextlib.closing(self.database.server.connect()) as client:
            cursor = client.cursor()
            while True:
                now = time.monotonic()
                closings.append((now, self.get_closed()))
                while closings[0][0] < now - NOTICE:
                    closings.popleft()
                cursor.execute(sql % self.database.name)
                ((count,),) = cursor.fetchall()
                recently_closed = self.get_closed() - closings[0][1]
                self.highest = max(self.highest, count - recently_closed)
                self.samples += 1
                if self._stop.wait(0.002):
                    break
            cursor.close()
