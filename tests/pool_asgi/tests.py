"""What real servers make of the pool: uvicorn, Daphne, Hypercorn, wsgiref."""

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import servers
from private_database import HAS_SERVER, VENDORS, PrivateDatabase, Sampler

import scripts
from django.db import connection
from django.db.pool import pools
from django.test import (
    AsyncClient,
    SimpleTestCase,
    TransactionTestCase,
    override_settings,
)

from .models import NumberRow

# Seconds. Nothing takes that long unless it hangs.
TIMEOUT = 30

MAX_SIZE = 3

ANSWERS = {
    "/sync/": "1",
    "/async/": "2",
    "/parallel/": "1 2 3 3",
    "/orm/": "3 of 3",
}
STREAM = "1\n2\n3\n" * 2

# Nobody should have to say this.
COMPLAINTS = [
    "Task was destroyed",
    "never retrieved",
    "never awaited",
    "different loop",
    "ResourceWarning",
    "Exception ignored",
    "Traceback",
    "a connection came back because",
]


class Server:
    """A server's process, with a project on a PrivateDatabase."""

    def __init__(self, database, get_args):
        self.directory = tempfile.TemporaryDirectory(prefix="pool-")
        self.log_path = os.path.join(self.directory.name, "log")
        settings_dict = {
            **database.settings,
            "POOL": {"max_size": MAX_SIZE, "timeout": TIMEOUT},
        }
        env = scripts.get_environment({"default": settings_dict}, PYTHONDEVMODE="1")
        env.pop("DJANGO_SETTINGS_MODULE", None)
        self.port = servers.find_free_port()
        with open(self.log_path, "w") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-Werror::ResourceWarning",
                    "-m",
                    *get_args(self.port),
                ],
                env=env,
                cwd=self.directory.name,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def get_log(self):
        with open(self.log_path) as log:
            return log.read()

    def wait_until_ready(self):
        deadline = time.monotonic() + TIMEOUT
        while True:
            try:
                return self.get_stats()
            except OSError:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise AssertionError("It doesn't answer:\n%s" % self.get_log())
                time.sleep(0.05)

    def get(self, path):
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT)
        with contextlib.closing(client):
            client.request("GET", path)
            response = client.getresponse()
            body = response.read().decode()
        if response.status != 200:
            raise AssertionError(
                "%s: status %d\n%s\n%s" % (path, response.status, body, self.get_log())
            )
        return body

    def get_stats(self):
        return json.loads(self.get("/stats/"))

    def send(self, path):
        """Send a request, and return its socket."""
        client = socket.create_connection(("127.0.0.1", self.port), TIMEOUT)
        client.sendall(b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % path.encode())
        return client

    def stop(self):
        """End the server. Return its exit code and what it said."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        log = self.get_log()
        self.directory.cleanup()
        return self.process.returncode, log


@unittest.skipUnless(connection.vendor in VENDORS, "There's no way to look into it.")
class ServerTestCase(SimpleTestCase):
    databases = {"default"}
    # By which module a server is run, and whether it ends with a lifespan.
    module = None
    has_lifespan = True

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.database = PrivateDatabase("pool_asgi")
        cls.addClassCleanup(cls.database.close)
        cls.server = Server(cls.database, cls.get_args)
        cls.addClassCleanup(cls.check_end)
        cls.server.wait_until_ready()

    @classmethod
    def get_args(cls, port):
        raise NotImplementedError

    @classmethod
    def check_end(cls):
        code, log = cls.server.stop()
        complaints = [complaint for complaint in COMPLAINTS if complaint in log]
        if complaints or code not in (0, -signal.SIGTERM):
            raise AssertionError("exit code %d, %r:\n%s" % (code, complaints, log))
        if cls.has_lifespan and "shutdown: 0 in use, 0 waiting" not in log:
            raise AssertionError("no shutdown:\n%s" % log)
        if HAS_SERVER:
            remaining = cls.database.server.wait_for_connection_count(
                0, cls.database.name
            )
            if remaining:
                raise AssertionError("%d connections remain." % remaining)

    def wait_for_stats(self, **expected):
        """Wait until the server's statistics are as expected."""
        deadline = time.monotonic() + TIMEOUT
        while True:
            stats = self.server.get_stats()
            if {**stats, **expected} == stats:
                return stats
            if time.monotonic() > deadline:
                self.fail("%r\n%s" % (stats, self.server.get_log()))
            time.sleep(0.01)

    def wait_until_active(self):
        """Wait until the database executes something."""
        if not HAS_SERVER:
            self.wait_for_stats(in_use=1)
            return
        deadline = time.monotonic() + TIMEOUT
        while not self.database.updating_sessions():
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.01)

    def assertIdle(self):
        stats = self.wait_for_stats(in_use=0, waiting=0, tasks=0)
        self.assertEqual((stats["lost"], stats["timeouts"]), (0, 0))
        self.assertLessEqual(stats["highest"], MAX_SIZE)
        if HAS_SERVER:
            self.assertEqual(
                self.database.server.wait_for_connection_count(
                    stats["size"], self.database.name
                ),
                stats["size"],
            )

    def sampling(self):
        if not HAS_SERVER:
            return contextlib.nullcontext()
        return Sampler(self.database)

    def locked_rows(self):
        if not HAS_SERVER:
            return contextlib.nullcontext()
        return self.database.locked_rows()

    def check_concurrent(self, answers):
        before = self.server.get_stats()
        with self.sampling() as sampler, ThreadPoolExecutor(20) as executor:
            paths = [*answers] * 20
            found = list(executor.map(self.server.get, paths))
        self.assertEqual(found, [answers[path] for path in paths])
        self.assertIdle()
        stats = self.server.get_stats()
        self.assertGreaterEqual(stats["highest"], 1)
        self.assertGreaterEqual(stats["size"], before["size"])
        # Nothing is closed here, so that this is exact.
        if sampler is not None:
            self.assertLessEqual(sampler.highest, MAX_SIZE)

    def test_concurrent(self):
        self.check_concurrent({**ANSWERS, "/streaming/": STREAM})


class ASGITestCase(ServerTestCase):
    def test_started(self):
        expected = [1] if self.has_lifespan else []
        self.assertEqual(self.server.get_stats()["startup"], expected)

    def test_streaming(self):
        self.assertEqual(self.server.get("/streaming/"), STREAM)
        self.assertIdle()

    def test_failing(self):
        self.assertIn("is in a transaction", self.server.get("/failing/"))
        self.assertIdle()

    def test_background(self):
        """A task outlives its request, and has a connection of its own."""
        for _ in range(5):
            self.assertEqual(self.server.get("/background/"), "started")
        self.wait_for_stats(tasks=5, in_use=0)
        self.server.get("/finish/")
        stats = self.wait_for_stats(tasks=0)
        self.assertEqual(stats["finished"], [3] * 5)
        self.assertIdle()

    def test_disconnect_while_streaming(self):
        with contextlib.ExitStack() as stack:
            clients = [
                stack.enter_context(self.server.send("/endless/"))
                for _ in range(MAX_SIZE)
            ]
            for client in clients:
                received = b""
                while b"more" not in received:
                    data = client.recv(1000)
                    received += data
                    if not data:
                        self.fail("%r\n%s" % (received, self.server.get_log()))
            self.wait_for_stats(in_use=MAX_SIZE)
            # Two more wait in line, and go away there.
            for _ in range(2):
                stack.enter_context(self.server.send("/endless/"))
            self.wait_for_stats(waiting=2)
        self.assertIdle()
        self.assertEqual(self.server.get("/parallel/"), ANSWERS["/parallel/"])

    def test_disconnect_while_executing(self):
        with self.locked_rows():
            with self.server.send("/slow/"):
                self.wait_until_active()
            # Though the rows are still locked.
            self.wait_for_stats(in_use=0, waiting=0)
            self.assertEqual(self.server.get("/parallel/"), ANSWERS["/parallel/"])
        self.assertIdle()

    @unittest.skipUnless(HAS_SERVER, "There is no server.")
    def test_disconnect_while_thread_executes(self):
        """A thread can't be cancelled. It gives back at its end."""
        with self.locked_rows():
            with self.server.send("/slow-sync/"):
                self.wait_until_active()
            self.assertEqual(self.server.get("/async/"), "2")
        self.assertIdle()


@unittest.skipUnless(find_spec("uvicorn"), "uvicorn isn't installed.")
class UvicornTests(ASGITestCase):
    loop = "asyncio"

    @classmethod
    def get_args(cls, port):
        return [
            "uvicorn",
            "--host=127.0.0.1",
            "--port=%d" % port,
            "--loop=%s" % cls.loop,
            "--lifespan=on",
            "--log-level=warning",
            "pool_asgi.asgi:application",
        ]


@unittest.skipUnless(find_spec("uvloop"), "uvloop isn't installed.")
class UvicornUvloopTests(UvicornTests):
    loop = "uvloop"


@unittest.skipUnless(find_spec("daphne"), "Daphne isn't installed.")
class DaphneTests(ASGITestCase):
    has_lifespan = False

    @classmethod
    def get_args(cls, port):
        return [
            "daphne",
            "--bind=127.0.0.1",
            "--port=%d" % port,
            "--verbosity=0",
            "pool_asgi.asgi:application",
        ]


@unittest.skipUnless(find_spec("hypercorn"), "Hypercorn isn't installed.")
class HypercornTests(ASGITestCase):
    @classmethod
    def get_args(cls, port):
        return [
            "hypercorn",
            "--bind=127.0.0.1:%d" % port,
            # In the process itself.
            "--workers=0",
            "--log-level=WARNING",
            "pool_asgi.asgi:application",
        ]


class WSGITests(ServerTestCase):
    """Each request of an async view has an event loop of its own."""

    has_lifespan = False

    @classmethod
    def get_args(cls, port):
        return ["pool_asgi.wsgi", str(port)]

    def test_concurrent(self):
        self.check_concurrent(ANSWERS)

    def test_failing(self):
        self.assertIn("is in a transaction", self.server.get("/failing/"))
        self.assertIdle()


# No tests of their own.
del ServerTestCase, ASGITestCase


@override_settings(ROOT_URLCONF="pool_asgi.views", MIDDLEWARE=[])
class AsyncClientTests(TransactionTestCase):
    """Async views in the process of the tests, on the test database."""

    available_apps = []

    def setUp(self):
        with connection.schema_editor() as editor:
            editor.create_model(NumberRow)
        self.addCleanup(self.delete_model)
        for number in [1, 2, 3]:
            NumberRow.objects.create(pk=number, number=number)
        connection.close()

    def delete_model(self):
        with connection.schema_editor() as editor:
            editor.delete_model(NumberRow)
        connection.close()

    async def test_views(self):
        client = AsyncClient()
        pool = pools["default"]
        for path, answer in ANSWERS.items():
            with self.subTest(path=path):
                response = await client.get(path)
                self.assertEqual(response.content.decode(), answer)
        response = await client.get("/failing/")
        self.assertContains(response, "is in a transaction")
        response = await client.get("/streaming/")
        chunks = [chunk.decode() async for chunk in response.streaming_content]
        self.assertEqual("".join(chunks), STREAM)
        self.assertEqual(pool.stats().waiting, 0)

    async def test_concurrent(self):
        client = AsyncClient()
        pool = pools["default"]
        responses = await asyncio.gather(
            *(client.get("/parallel/") for _ in range(100))
        )
        for response in responses:
            self.assertEqual(response.content.decode(), ANSWERS["/parallel/"])
        stats = pool.stats()
        self.assertEqual((stats.in_use, stats.waiting, stats.lost), (0, 0, 0))
        self.assertLessEqual(stats.size, stats.max_size)
