"""Mode "transaction" on real servers: in requests, and with many threads."""

import asyncio
import threading
import unittest

from asgiref.sync import sync_to_async
from proxy import CountingProxy

from django.db import connection, transaction
from django.db.pool import pools
from django.http import HttpResponse, StreamingHttpResponse
from django.test import override_settings
from django.urls import path

from .tests import (
    HAS_SERVER,
    RequestTests,
    ServerTestCase,
    StressTests,
    failing_view,
    streaming_view,
    view,
)


class TransactionStressTests(StressTests):
    """The same statements, each on a connection that it has for itself."""

    def make_handler(self, settings_dict=None, **options):
        return super().make_handler(settings_dict, mode="transaction", **options)


class FewConnectionsTests(ServerTestCase):
    def test_statements_and_transactions_of_many_wrappers(self):
        """Wrappers that are never closed share what there is."""
        handler = self.make_handler(mode="transaction", max_size=3, timeout=60)
        pool = handler["default"].connection_pool
        barrier = threading.Barrier(16)
        served = []

        def work():
            wrapper = handler["default"]
            # All of them have been used before any is used again.
            with wrapper.cursor() as cursor:
                cursor.execute("SELECT 1")
                cursor.fetchall()
            barrier.wait(60)
            for number in range(50):
                with wrapper.cursor() as cursor:
                    cursor.execute("SELECT 40 + %s", [number])
                    served.append(cursor.fetchone()[0] - number)
                wrapper.set_autocommit(False)
                with wrapper.cursor() as cursor:
                    cursor.execute("SELECT 40 + %s", [number])
                    served.append(cursor.fetchone()[0] - number)
                wrapper.rollback()
                wrapper.set_autocommit(True)
            self.assertIsNone(wrapper.connection)

        self.join(*self.run_threads(16, work))
        self.assertEqual(served, [40] * (16 * 100))
        stats = pool.stats()
        self.assertEqual((stats.in_use, stats.lost, stats.timeouts), (0, 0, 0))
        self.assertLessEqual(stats.opened, 3)

    @unittest.skipUnless(connection.vendor == "postgresql", "PostgreSQL only")
    def test_nobody_gets_into_a_transaction(self):
        handler = self.make_handler(mode="transaction", max_size=2, timeout=60)

        def work():
            wrapper = handler["default"]
            for _ in range(50):
                with wrapper.cursor() as cursor:
                    cursor.execute(
                        "SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() "
                        "AND locktype = 'advisory'"
                    )
                    self.assertEqual(cursor.fetchone()[0], 0)
                wrapper.set_autocommit(False)
                with wrapper.cursor() as cursor:
                    cursor.execute("SELECT pg_advisory_xact_lock_shared(1)")
                    cursor.fetchall()
                wrapper.commit()
                wrapper.set_autocommit(True)

        self.join(*self.run_threads(8, work))
        self.assertEqual(handler["default"].connection_pool.stats().pins, ())


class RoundTripTests(ServerTestCase):
    @unittest.skipUnless(HAS_SERVER, "There is no wire.")
    def test_statements_send_nothing_else(self):
        """A statement costs the same bytes as on a connection that is kept."""
        settings_dict = {**connection.settings_dict}
        del settings_dict["POOL"]
        with CountingProxy(settings_dict["HOST"], settings_dict["PORT"]) as proxy:
            settings_dict.update(HOST="127.0.0.1", PORT=proxy.port)
            sent = {}
            for mode in ("session", "transaction"):
                wrapper = self.make_handler(settings_dict, mode=mode)["default"]
                with wrapper.cursor() as cursor:
                    cursor.execute("SELECT 42")
                before = proxy.bytes
                for _ in range(10):
                    with wrapper.cursor() as cursor:
                        cursor.execute("SELECT 42")
                        self.assertEqual(cursor.fetchall()[0][0], 42)
                    # The end of a request.
                    wrapper.close_if_unusable_or_obsolete()
                    self.assertIsNone(wrapper.connection)
                sent[mode] = proxy.bytes - before
                wrapper.close()
                wrapper.close_pool()
            self.assertGreater(sent["session"], 0)
            self.assertEqual(sent["transaction"], sent["session"])

    @unittest.skipUnless(connection.vendor == "sqlite", "SQLite only.")
    def test_nothing_else_is_executed(self):
        wrapper = self.make_handler(mode="transaction")["default"]
        executed = []
        wrapper.ensure_connection()
        wrapper.connection.set_trace_callback(executed.append)
        for _ in range(3):
            with wrapper.cursor() as cursor:
                cursor.execute("SELECT 42")
                cursor.fetchall()
            self.assertIsNone(wrapper.connection)
        self.assertEqual(executed, ["SELECT 42"] * 3)


# Requests.


def get_in_use():
    return pools["default"].stats().in_use


def orm_view(request):
    """Tell how many connections are in use between statements."""
    from django.contrib.auth.models import User

    seen = [get_in_use()]
    User.objects.filter(username="nobody").exists()
    seen.append(get_in_use())
    list(User.objects.all())
    seen.append(get_in_use())
    for _ in User.objects.iterator():
        pass
    seen.append(get_in_use())
    with transaction.atomic():
        seen.append(get_in_use())
        transaction.on_commit(lambda: seen.append(get_in_use()))
    seen.append(get_in_use())
    return HttpResponse("".join(map(str, seen)))


def abandoning_view(request):
    """Leave cursors and iterators open."""
    from django.contrib.auth.models import User

    for _ in User.objects.iterator():
        break
    connection.cursor().execute("SELECT 1")
    request.cursor = connection.cursor()
    request.cursor.execute("SELECT 1")
    return HttpResponse("left")


def touching_view(request):
    with connection.cursor() as cursor:
        cursor.execute(
            {
                "postgresql": "SET application_name = 'touched'",
                "mysql": "SET @touched = 1",
                "sqlite": "PRAGMA cache_size = 1234",
            }[connection.vendor]
        )
    return HttpResponse("%s %d" % (connection.pin_reason, get_in_use()))


async def waiting_view(request):
    """Wait between two queries, for as many requests as the test wants."""
    first = await sync_to_async(select)()
    await request.scope["waiting"].wait()
    second = await sync_to_async(select)()
    return HttpResponse(str(first + second))


def select():
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        return cursor.fetchone()[0]


async def waiting_stream_view(request):
    async def stream():
        yield str(await sync_to_async(select)())
        await request.scope["waiting"].wait()
        yield str(await sync_to_async(select)())

    return StreamingHttpResponse(stream())


urlpatterns = [
    path("", view),
    path("failing/", failing_view),
    path("streaming/", streaming_view),
    path("orm/", orm_view),
    path("abandoning/", abandoning_view),
    path("touching/", touching_view),
    path("waiting/", waiting_view),
    path("waiting-stream/", waiting_stream_view),
]


class Meeting:
    """Let nobody pass before all have arrived."""

    def __init__(self, number):
        self.missing = number
        self.complete = asyncio.Event()

    async def wait(self):
        self.missing -= 1
        if not self.missing:
            self.complete.set()
        await self.complete.wait()


@override_settings(ROOT_URLCONF=__name__)
class TransactionRequestTests(RequestTests):
    available_apps = ["django.contrib.auth", "django.contrib.contenttypes"]

    def setUp(self):
        settings_dict = connection.settings_dict
        self.addCleanup(settings_dict.update, POOL=settings_dict["POOL"])
        # Those of other aliases may be shared with it.
        settings_dict["POOL"] = {
            "mode": "transaction",
            "timeout": 10,
            **self.get_options(),
        }
        connection.close()
        self.addCleanup(connection.close)
        super().setUp()
        self.assertEqual(pools["default"].options.mode, "transaction")

    def get_options(self):
        return {}

    def test_orm(self):
        self.assertEqual(self.request("/orm/"), b"0000100")
        self.assertEqual(get_in_use(), 0)

    def test_atomic_requests(self):
        connection.settings_dict["ATOMIC_REQUESTS"] = True
        self.addCleanup(connection.settings_dict.update, ATOMIC_REQUESTS=False)
        self.assertEqual(self.request("/"), b"1")
        # A transaction is a transaction.
        self.assertEqual(self.request("/orm/")[:4], b"1111")
        self.assertEqual(get_in_use(), 0)

    def test_what_is_left_open(self):
        from django.contrib.auth.models import User

        for number in range(3):
            User.objects.create(username=str(number))
        self.assertEqual(self.request("/abandoning/"), b"left")
        self.assertEqual(get_in_use(), 0)
        User.objects.all().delete()

    def test_touched_session(self):
        """A pin ends with the request."""
        resets = pools["default"].stats().resets
        reason = b"user variable" if connection.vendor == "mysql" else b"setting"
        self.assertEqual(self.request("/touching/"), reason + b" 1")
        stats = pools["default"].stats()
        self.assertEqual((stats.in_use, stats.resets), (0, resets + 1))

    def test_requests_that_wait(self):
        """As many requests as one likes wait between queries."""
        for url in ("/waiting/", "/waiting-stream/"):
            with self.subTest(url):
                self.assertEqual(
                    asyncio.run(self.wait_together(url, 50)),
                    [b"2" if url == "/waiting/" else b"11"] * 50,
                )
                stats = pools["default"].stats()
                self.assertEqual((stats.in_use, stats.lost), (0, 0))
                self.assertLessEqual(stats.size, 10)

    async def wait_together(self, url, number):
        self.meeting = Meeting(number)
        return await asyncio.gather(*(self.request_asgi(url) for _ in range(number)))

    def make_scope(self, url):
        scope = super().make_scope(url)
        scope["waiting"] = getattr(self, "meeting", None)
        return scope
