"""What holds on real servers, with many threads, and when servers fail."""

import asyncio
import os
import threading
import time
import unittest
from unittest import mock

import servers
from asgiref.testing import ApplicationCommunicator
from proxy import CountingProxy
from reports import ReportsMixin

from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.db import OperationalError, close_old_connections, connection, connections
from django.db.pool import PoolTimeout, pools
from django.db.utils import ConnectionHandler
from django.http import HttpResponse, StreamingHttpResponse
from django.test import (
    AsyncRequestFactory,
    RequestFactory,
    SimpleTestCase,
    TransactionTestCase,
    override_settings,
)
from django.urls import path

HAS_SERVER = connection.vendor in {"postgresql", "mysql"}
NAMES = {"postgresql": "postgres", "mysql": "mysql"}


def make_handler(settings_dict, **options):
    """Return what django.db.connections is, for one database and its pool."""
    return ConnectionHandler(
        {"default": {**settings_dict, "POOL": {"timeout": 10, **options}}}
    )


def query(handler):
    """Do what a request does with its connection; return its result."""
    wrapper = handler["default"]
    try:
        with wrapper.cursor() as cursor:
            cursor.execute("SELECT 40 + %s", [2])
            return cursor.fetchone()[0]
    finally:
        wrapper.close_if_unusable_or_obsolete()


class ServerTestCase(ReportsMixin, SimpleTestCase):
    databases = {"default"}

    def make_handler(self, settings_dict=None, **options):
        if settings_dict is None:
            settings_dict = {
                name: value
                for name, value in connection.settings_dict.items()
                if name != "POOL"
            }
        handler = make_handler(settings_dict, **options)
        self.addCleanup(handler["default"].close_pool)
        self.addCleanup(handler["default"].close)
        return handler

    def run_threads(self, number, target):
        """Run `target` in threads, and raise the first of their errors."""
        errors = []

        def run():
            try:
                target()
            except Exception as e:
                errors.append(e)

        threads = [threading.Thread(target=run) for _ in range(number)]
        for thread in threads:
            thread.start()
        return threads, errors

    def join(self, threads, errors):
        for thread in threads:
            thread.join(120)
            self.assertIs(thread.is_alive(), False)
        if errors:
            raise errors[0]

    def wait_until(self, condition):
        deadline = time.monotonic() + 10
        while not condition():
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.01)

    def warm_up(self, pool, number):
        entries = [pool.acquire() for _ in range(number)]
        for entry in entries:
            pool.release(entry)


class StressTests(ServerTestCase):
    THREADS = 64
    REQUESTS = 200

    def test_limit_holds(self):
        """64 threads do 200 requests each on 5 connections."""
        handler = self.make_handler(max_size=5, timeout=60)
        pool = handler["default"].connection_pool
        served = []

        def work():
            for number in range(self.REQUESTS):
                served.append(query(handler))
                # In the midst of what the others do.
                if number == self.REQUESTS // 2:
                    counts.append(count())

        count = self.get_counter()
        counts = []
        self.join(*self.run_threads(self.THREADS, work))
        self.assertEqual(served, [42] * (self.THREADS * self.REQUESTS))
        self.assertEqual(len(counts), self.THREADS)
        self.assertGreaterEqual(max(counts), 1)
        self.assertLessEqual(max(counts), 5)
        stats = pool.stats()
        self.assertEqual(stats.acquired, len(served))
        self.assertEqual(stats.closed, 0)
        # Whoever one was opened for may have been served with another.
        never_lent = sum(not entry.uses for entry in pool._core.idle)
        self.assertEqual(stats.reused + stats.opened - never_lent, len(served))
        self.assertEqual(sum(stats.wait_counts), stats.acquired)
        self.assertEqual((stats.in_use, stats.waiting, stats.connecting), (0, 0, 0))
        self.assertEqual(stats.idle, stats.size)
        self.assertLessEqual(stats.size, 5)
        self.assertEqual((stats.timeouts, stats.lost, stats.refused), (0, 0, 0))

    def get_counter(self):
        """Return what counts connections beyond those open now."""
        if not HAS_SERVER:
            return make_descriptor_counter()
        server = servers.shared_server(connection.vendor)
        name = connection.settings_dict["NAME"]
        already = server.connection_count(name)
        return lambda: server.connection_count(name) - already


def make_descriptor_counter():
    """Return what counts open descriptors of SQLite's file."""
    database = os.path.realpath(connection.settings_dict["NAME"])

    def count():
        found = 0
        for name in os.listdir("/proc/self/fd"):
            try:
                found += os.readlink("/proc/self/fd/%s" % name) == database
            except OSError:
                continue
        return found

    already = count()
    return lambda: count() - already


class RoundTripTests(ServerTestCase):
    """A warm connection that comes back clean costs nothing on the wire."""

    @unittest.skipUnless(HAS_SERVER, "There is no wire.")
    def test_lending_and_returning_sends_nothing(self):
        settings_dict = {**connection.settings_dict}
        del settings_dict["POOL"]
        with CountingProxy(settings_dict["HOST"], settings_dict["PORT"]) as proxy:
            settings_dict.update(HOST="127.0.0.1", PORT=proxy.port)
            handler = self.make_handler(settings_dict)
            wrapper = handler["default"]
            self.assertEqual(query(handler), 42)
            opened, passed = proxy.connections, proxy.bytes
            self.assertEqual(opened, 1)
            for _ in range(100):
                wrapper.ensure_connection()
                wrapper.close_if_unusable_or_obsolete()
            self.assertEqual((proxy.connections, proxy.bytes), (opened, passed))
            # The count does count: a query passes by the proxy.
            self.assertEqual(query(handler), 42)
            self.assertGreater(proxy.bytes, passed)
            with_query = proxy.bytes - passed
            # With a query, it's the bytes of the query alone.
            with wrapper.cursor() as cursor:
                cursor.execute("SELECT 40 + %s", [2])
                passed = proxy.bytes
                cursor.execute("SELECT 40 + %s", [2])
                cursor.fetchone()
                alone = proxy.bytes - passed
            self.assertEqual(with_query, alone)
            wrapper.close()
            wrapper.close_pool()

    @unittest.skipUnless(connection.vendor == "sqlite", "SQLite only")
    def test_lending_and_returning_executes_nothing(self):
        handler = self.make_handler()
        wrapper = handler["default"]
        statements = []
        wrapper.ensure_connection()
        wrapper.connection.set_trace_callback(statements.append)
        for _ in range(100):
            wrapper.close_if_unusable_or_obsolete()
            self.assertIsNone(wrapper.connection)
            wrapper.ensure_connection()
        self.assertEqual(statements, [])
        wrapper.close()
        query(handler)
        self.assertEqual(statements, ["SELECT 40 + 2"])


@unittest.skipUnless(HAS_SERVER, "There is no server.")
class RecoveryTests(ServerTestCase):
    def setUp(self):
        super().setUp()
        self.server = servers.shared_server(connection.vendor)

    def terminate(self, pool):
        """Have the server end the pool's connections, and no others."""
        entries = [pool.acquire() for _ in range(pool.stats().size)]
        pids = [self.get_pid(entry.connection) for entry in entries]
        for entry in entries:
            pool.release(entry)
        for pid in pids:
            self.server.execute(
                "SELECT pg_terminate_backend(%d)" % pid
                if connection.vendor == "postgresql"
                else "KILL %d" % pid
            )
        self.wait_until_readable(pool)

    def wait_until_readable(self, pool):
        self.wait_until(lambda: all(entry.poll(0) for entry in pool._core.idle))

    @staticmethod
    def get_pid(driver_connection):
        if connection.vendor == "mysql":
            return driver_connection.thread_id()
        return driver_connection.info.backend_pid

    def test_terminated_connections(self):
        """No request fails, and the first pays for one connection alone."""
        for number in (10, 50):
            with self.subTest(number=number):
                handler = self.make_handler(max_size=number)
                pool = handler["default"].connection_pool
                self.warm_up(pool, number)
                self.assertEqual(pool.stats().idle, number)
                self.terminate(pool)
                with self.assertReportsDeath():
                    self.assertEqual(query(handler), 42)
                stats = pool.stats()
                # No more than one round trip to find out.
                self.assertLessEqual(stats.checks, 1)
                self.assertEqual(stats.check_failures, 1)
                self.assertEqual(stats.opened, number + 1)
                self.wait_until(lambda: pool.stats().closed == number)
                for _ in range(39):
                    self.assertEqual(query(handler), 42)
                self.assertEqual(pool.stats().opened, number + 1)
                handler["default"].close_pool()

    def test_terminated_while_many_want_one(self):
        handler = self.make_handler(max_size=10)
        pool = handler["default"].connection_pool
        self.warm_up(pool, 10)
        self.terminate(pool)
        served = []
        with self.assertReportsDeath():
            self.join(*self.run_threads(40, lambda: served.append(query(handler))))
        self.assertEqual(served, [42] * 40)
        self.assertLessEqual(pool.stats().size, 10)

    @unittest.skipUnless(connection.vendor == "postgresql", "PostgreSQL only")
    @mock.patch("django.db.pool.threads.TRUST_IN_RETURNED", 0)
    def test_something_to_read_is_not_an_end(self):
        handler = self.make_handler(max_size=1)
        wrapper = handler["default"]
        pool = wrapper.connection_pool
        wrapper.ensure_connection()
        driver_connection = wrapper.connection
        # By the driver, for the pool would reset such a session.
        with driver_connection.cursor() as cursor:
            cursor.execute("LISTEN news")
        wrapper.close()
        with connection.cursor() as cursor:
            cursor.execute("NOTIFY news")
        self.wait_until_readable(pool)
        wrapper.ensure_connection()
        self.assertIs(wrapper.connection, driver_connection)
        wrapper.close()
        self.assertEqual(query(handler), 42)
        stats = pool.stats()
        self.assertEqual((stats.checks, stats.check_failures), (1, 0))

    def test_terminated_while_in_use(self):
        handler = self.make_handler(max_size=2)
        wrapper = handler["default"]
        wrapper.ensure_connection()
        self.server.execute(
            "SELECT pg_terminate_backend(%d)" % self.get_pid(wrapper.connection)
            if connection.vendor == "postgresql"
            else "KILL %d" % self.get_pid(wrapper.connection)
        )
        with self.assertRaises(OperationalError):
            query(handler)
        self.assertEqual(query(handler), 42)
        self.assertEqual(handler["default"].connection_pool.stats().size, 1)


@unittest.skipUnless(HAS_SERVER, "There is no server.")
class FailingServerTests(ServerTestCase):
    """On a server of their own, which is stopped, killed and frozen."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.server = (
            servers.PostgreSQLServer()
            if connection.vendor == "postgresql"
            else servers.MariaDBServer()
        )
        cls.server.start()
        cls.addClassCleanup(cls.server.close)

    def make_handler(self, **options):
        return super().make_handler(
            self.server.settings(NAMES[connection.vendor]), **options
        )

    def test_restart(self):
        handler = self.make_handler(max_size=10)
        self.warm_up(handler["default"].connection_pool, 10)
        self.server.restart()
        with self.assertReportsDeath():
            self.assertEqual([query(handler) for _ in range(40)], [42] * 40)

    def test_down(self):
        """Callers get the connect error, at once, and not a timeout."""
        handler = self.make_handler(max_size=3, timeout=60)
        pool = handler["default"].connection_pool
        self.warm_up(pool, 3)
        self.server.stop()
        with self.assertReportsDeath():
            for _ in range(3):
                with self.assertRaises(OperationalError) as caught:
                    query(handler)
                self.assertNotIsInstance(caught.exception, PoolTimeout)
                self.assertIsInstance(
                    caught.exception.__cause__, handler["default"].Database.Error
                )
            errors = []
            threads, _ = self.run_threads(
                20, lambda: errors.append(self.get_error(handler))
            )
            self.join(threads, [])
        self.assertEqual(len(errors), 20)
        self.assertEqual({type(error) for error in errors}, {OperationalError})
        # Each thread has an error of its own.
        self.assertEqual(len({id(error.__cause__) for error in errors}), 20)
        self.assertEqual(pool.stats().timeouts, 0)
        self.server.start()
        self.assertEqual(query(handler), 42)

    @staticmethod
    def get_error(handler):
        try:
            query(handler)
        except Exception as e:
            return e

    def test_frozen(self):
        """Nobody waits for longer because a server doesn't answer."""
        handler = self.make_handler(max_size=2, timeout=0.2)
        pool = handler["default"].connection_pool
        with self.server.freezing():
            with self.assertRaises(PoolTimeout):
                query(handler)
            self.assertEqual(pool.stats().connecting, 1)
        # The connection was the pool's all along.
        self.wait_until(lambda: pool.stats().idle)
        self.assertEqual(query(handler), 42)
        self.assertEqual(pool.stats().opened, 1)

    def test_suspended_through_failover(self):
        handler = self.make_handler(max_size=3, timeout=60)
        pool = handler["default"].connection_pool
        self.warm_up(pool, 3)
        pool.suspend()
        served = []
        threads, errors = self.run_threads(5, lambda: served.append(query(handler)))
        self.server.restart()
        self.wait_until(lambda: pool.stats().waiting == 5)
        self.assertEqual(served, [])
        pool.drain()
        pool.resume()
        self.join(threads, errors)
        self.assertEqual(served, [42] * 5)
        self.assertEqual(pool.stats().check_failures, 0)

    def test_too_many_connections(self):
        """When the server takes no more, those that exist are shared."""
        limit = 5
        server = type(self.server)(max_connections=limit)
        server.start()
        self.addCleanup(server.close)
        handler = ServerTestCase.make_handler(
            self, server.settings(NAMES[connection.vendor]), max_size=20, timeout=30
        )
        served = []

        def work():
            for _ in range(20):
                served.append(query(handler))

        pool = handler["default"].connection_pool
        self.warm_up(pool, 1)
        self.join(*self.run_threads(16, work))
        self.assertEqual(served, [42] * (16 * 20))
        handler["default"].close_pool()


def failing_view(request):
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    raise ValueError("in the view")


def view(request):
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        return HttpResponse(str(cursor.fetchone()[0]))


def streaming_view(request):
    def stream():
        for _ in range(3):
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1")
                yield str(cursor.fetchone()[0])

    return StreamingHttpResponse(stream())


urlpatterns = [
    path("", view),
    path("failing/", failing_view),
    path("streaming/", streaming_view),
]


@override_settings(ROOT_URLCONF=__name__, MIDDLEWARE=[], DEBUG=False)
class RequestTests(TransactionTestCase):
    """What a request borrowed is back when it has been answered."""

    available_apps = []

    def setUp(self):
        connection.close()
        self.assertIsNotNone(connection.connection_pool)

    def request(self, url):
        environ = RequestFactory().get(url).environ
        response = WSGIHandler()(environ, lambda *args: None)
        try:
            return b"".join(response)
        finally:
            response.close()

    def test_request(self):
        self.assertEqual(self.request("/"), b"1")
        self.assertIsNone(connection.connection)
        self.assertEqual(pools["default"].stats().in_use, 0)
        self.assertIs(pools["default"], connections["default"].connection_pool)

    def test_streaming(self):
        self.assertEqual(self.request("/streaming/"), b"111")
        self.assertEqual(pools["default"].stats().in_use, 0)

    def test_exception(self):
        with self.assertLogs("django.request", "ERROR"):
            self.request("/failing/")
        self.assertEqual(pools["default"].stats().in_use, 0)

    def test_asgi(self):
        """Each request has a thread of its own, and they share connections."""
        stats = pools["default"].stats()

        async def request_all():
            return await asyncio.gather(
                *(self.request_asgi(url) for url in ["/", "/streaming/"] * 20)
            )

        answers = asyncio.run(request_all())
        self.assertEqual(answers, [b"1", b"111"] * 20)
        with self.assertLogs("django.request", "ERROR"):
            asyncio.run(self.request_asgi("/failing/"))
        after = pools["default"].stats()
        self.assertEqual(after.in_use, 0)
        self.assertEqual(after.lost, stats.lost)
        self.assertLessEqual(after.opened - stats.opened, after.max_size)

    def make_scope(self, url):
        scope = AsyncRequestFactory()._base_scope(path=url, method="GET")
        return {**scope, "type": "http"}

    async def request_asgi(self, url):
        communicator = ApplicationCommunicator(ASGIHandler(), self.make_scope(url))
        await communicator.send_input({"type": "http.request"})
        start = await communicator.receive_output(timeout=30)
        self.assertEqual(start["type"], "http.response.start")
        body = b""
        while True:
            message = await communicator.receive_output(timeout=30)
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        await communicator.wait(timeout=30)
        return body

    def test_many_threads(self):
        opened = pools["default"].stats().opened
        answers = []

        def work():
            for _ in range(20):
                answers.append(self.request("/"))
            close_old_connections()

        threads = [threading.Thread(target=work) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(answers, [b"1"] * 320)
        stats = pools["default"].stats()
        self.assertEqual(stats.in_use, 0)
        self.assertLessEqual(stats.opened - opened, stats.max_size)
