"""
Tests of the private servers that other tests rely on.
"""

import contextlib
import os
import socket
import subprocess
import sys
import time
import unittest

from servers import (
    LOCALHOST,
    MariaDBServer,
    PostgreSQLServer,
    find_descendants,
    find_free_port,
    process_table,
)
from suite import TESTS

from django.db import connection
from django.test import SimpleTestCase

# Starts a server, tells about it and waits to be killed.
ABANDONING_SCRIPT = """
import sys
import servers

server = getattr(servers, sys.argv[1])()
server.start()
print(server.process.pid, server.directory, flush=True)
sys.stdin.read()
"""


class FreePortTests(SimpleTestCase):
    def test_free(self):
        port = find_free_port()
        with socket.create_server((LOCALHOST, port)) as server:
            self.assertEqual(server.getsockname()[1], port)


class ProcessTableTests(SimpleTestCase):
    def test_descendants(self):
        with subprocess.Popen(
            [sys.executable, "-ISc", "input()"],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as child:
            self.assertIn(child.pid, find_descendants(os.getpid()))
            self.assertEqual(process_table()[child.pid][0], os.getpid())
            child.kill()


class ServerTests:
    server_class = None

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.server = cls.enterClassContext(cls.server_class(max_connections=30))
        cls.server.create_database("selftest")

    if sys.version_info < (3, 11):

        @classmethod
        def enterClassContext(cls, context_manager):
            result = context_manager.__enter__()
            cls.addClassCleanup(context_manager.__exit__, None, None, None)
            return result

    def open_connections(self, count):
        opened = []
        for _ in range(count):
            opened.append(self.server.connect("selftest"))
            self.addCleanup(self.close_client, opened[-1])
        return opened

    def close_client(self, client):
        # The connection may be dead already.
        with contextlib.suppress(Exception):
            client.close()

    def query(self, client):
        with contextlib.closing(client.cursor()) as cursor:
            cursor.execute("SELECT 1")
            return cursor.fetchone()

    def test_execute(self):
        execute = self.server.execute
        self.assertEqual(execute("SELECT 1, %s", ["two"]), [(1, "two")])
        self.assertEqual(
            execute("CREATE TABLE thing (id integer)", database="selftest"), []
        )
        self.assertEqual(execute("SELECT * FROM thing", database="selftest"), [])

    def test_options(self):
        self.assertEqual(self.max_connections(), 30)

    def test_password_required(self):
        self.addCleanup(setattr, self.server, "password", self.server.password)
        self.server.password = "wrong"
        with self.assertRaises(Exception) as cm:
            self.server.connect()
        self.assertEqual(type(cm.exception).__name__, "OperationalError")

    def test_settings(self):
        settings = self.server.settings("selftest")
        self.assertEqual(settings["ENGINE"], self.server.engine)
        self.assertEqual(settings["NAME"], "selftest")
        self.assertEqual(settings["PORT"], str(self.server.port))

    def test_connection_count(self):
        first, second = self.open_connections(2)
        self.assertEqual(self.server.connection_count("selftest"), 2)
        self.assertEqual(self.server.connection_count("nothing"), 0)
        self.assertEqual(self.server.connection_count(), 2)
        first.close()
        second.close()
        self.assertEqual(self.server.wait_for_connection_count(0, "selftest"), 0)

    def test_terminate_connections(self):
        opened = self.open_connections(2)
        self.assertEqual(self.server.terminate_connections("nothing"), 0)
        self.assertEqual(self.server.terminate_connections("selftest"), 2)
        self.assertEqual(self.server.connection_count("selftest"), 0)
        for client in opened:
            with self.assertRaises(Exception):
                self.query(client)

    def test_freeze(self):
        (opened,) = self.open_connections(1)
        with self.server.freezing():
            # The kernel still accepts connections, but the server is silent.
            with socket.create_connection((LOCALHOST, self.server.port)):
                started = time.monotonic()
                with self.assertRaises(Exception):
                    # Drivers raise a timeout of one second to two.
                    self.server.connect(timeout=2)
                self.assertGreater(time.monotonic() - started, 1)
        self.assertEqual(self.query(opened), (1,))

    def test_restart(self):
        for kill in [False, True]:
            with self.subTest(kill=kill):
                (opened,) = self.open_connections(1)
                port, process = self.server.port, self.server.process.pid
                self.server.restart(kill=kill)
                self.assertEqual(self.server.port, port)
                self.assertNotEqual(self.server.process.pid, process)
                self.assertEqual(
                    self.server.execute("SELECT 1", database="selftest"), [(1,)]
                )
                with self.assertRaises(Exception):
                    self.query(opened)

    def test_stop_while_frozen(self):
        self.server.freeze()
        self.server.stop()
        self.assertIs(self.server.is_running, False)
        with self.assertRaises(ConnectionRefusedError):
            socket.create_connection((LOCALHOST, self.server.port))
        self.server.start()
        self.assertIs(self.server.is_running, True)

    def test_server_ends_with_its_starter(self):
        with subprocess.Popen(
            [
                sys.executable,
                "-Wignore",
                "-c",
                ABANDONING_SCRIPT,
                self.server_class.__name__,
            ],
            cwd=TESTS,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as starter:
            pid, directory = starter.stdout.readline().split()
            self.assertIn(int(pid), process_table())
            starter.kill()
        deadline = time.monotonic() + 20
        while os.path.exists(directory) and time.monotonic() < deadline:
            time.sleep(0.05)
        self.assertIs(os.path.exists(directory), False)
        self.assertEqual(process_table().get(int(pid), (0, "Z"))[1], "Z")


@unittest.skipUnless(connection.vendor == "postgresql", "PostgreSQL tests")
class PostgreSQLServerTests(ServerTests, SimpleTestCase):
    server_class = PostgreSQLServer

    def max_connections(self):
        return int(self.server.execute("SHOW max_connections")[0][0])


@unittest.skipUnless(connection.vendor == "mysql", "MariaDB tests")
class MariaDBServerTests(ServerTests, SimpleTestCase):
    server_class = MariaDBServer

    def max_connections(self):
        return self.server.execute("SELECT @@max_connections")[0][0]
