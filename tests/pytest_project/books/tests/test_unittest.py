"""Django's own classes, run by pytest."""

import json
import threading
import urllib.request
from unittest import TestCase as PlainTestCase

import pytest
from books.models import Book, Genre

from django.db import connection, transaction
from django.test import (
    LiveServerTestCase,
    SimpleTestCase,
    TestCase,
    TransactionTestCase,
    override_settings,
)

TIMEOUT = 30


class BookTests(TestCase):
    databases = {"default", "archive"}

    @classmethod
    def setUpTestData(cls):
        cls.genre = Genre.objects.create(name="Thriller")
        cls.book = Book.objects.create(title="Shared", genre=cls.genre)
        Book.objects.using("archive").create(title="Old")

    def test_change(self):
        self.book.copies = 9
        self.book.save()
        Book.objects.using("archive").all().delete()

    def test_unchanged(self):
        self.assertEqual(Book.objects.get(title="Shared").copies, 0)
        self.assertEqual(Book.objects.using("archive").count(), 1)

    def test_num_queries(self):
        with self.assertNumQueries(1):
            self.client.get("/books/")

    def test_on_commit(self):
        with self.captureOnCommitCallbacks(execute=True) as callbacks:
            transaction.on_commit(lambda: None)
        self.assertEqual(len(callbacks), 1)

    @override_settings(USE_TZ=False, TIME_ZONE="Asia/Tokyo")
    def test_settings(self):
        self.assertEqual(self.client.get("/books/").status_code, 200)

    async def test_async(self):
        response = await self.async_client.get("/books/async/")
        self.assertEqual(response.json()["count"], await Book.objects.acount())


class CommittingTests(TransactionTestCase):
    def test_commit(self):
        with transaction.atomic():
            Book.objects.create(title="Committed")
        self.assertIs(connection.in_atomic_block, False)

    def test_thread(self):
        if connection.vendor == "sqlite" and connection.is_in_memory_db():
            self.skipTest("The database belongs to one connection.")
        Book.objects.create(title="Seen by the thread")
        titles = []

        def use():
            try:
                titles.extend(Book.objects.values_list("title", flat=True))
            finally:
                connection.close()

        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
        self.assertEqual(titles, ["Seen by the thread"])

    async def test_async(self):
        await Book.objects.acreate(title="Asynchronous")
        response = await self.async_client.get("/books/async/")
        self.assertEqual(response.json(), {"count": 1})


class SerializedTests(TransactionTestCase):
    serialized_rollback = True
    reset_sequences = True

    def test_reset_sequences(self):
        self.assertEqual(Book.objects.create(title="First").pk, 1)


class ServerTests(LiveServerTestCase):
    def fetch(self, path):
        url = self.live_server_url + path
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
            return json.loads(response.read())

    def test_add(self):
        self.fetch("/books/add/Novel/")
        self.assertEqual(Book.objects.get().title, "Novel")

    def test_count(self):
        self.assertEqual(self.fetch("/books/"), {"count": 0})


class BlockedTests(SimpleTestCase):
    def test_blocked(self):
        # pytest-django comes before what SimpleTestCase says.
        with self.assertRaises((AssertionError, RuntimeError)):
            Book.objects.count()


@pytest.mark.django_db
class MarkedTests(PlainTestCase):
    def test_mark(self):
        Book.objects.create(title="Plain")
        self.assertEqual(Book.objects.filter(title="Plain").count(), 1)
