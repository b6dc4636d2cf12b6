"""Tests that make requests without a server, and of settings."""

import asyncio
import datetime

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from books.models import Book

from django.db import IntegrityError, connection, connections
from django.utils import timezone


def test_client(db, client):
    assert client.get("/books/add/Novel/").status_code == 200
    assert client.get("/books/").json()["count"] == Book.objects.count()
    assert connection.in_atomic_block is True


def test_client_transactional(transactional_db, client):
    count = Book.objects.count()
    client.get("/books/add/Novel/")
    assert client.get("/books/").json() == {"count": count + 1}


def test_client_error(db, client):
    with pytest.raises(IntegrityError):
        client.get("/books/broken/")
    client.raise_request_exception = False
    assert client.get("/books/broken/").status_code == 500
    assert not Book.objects.filter(title="Twice").exists()


def test_streaming(transactional_db, client):
    for title in ["A", "B", "C"]:
        client.get("/books/add/%s/" % title)
    assert client.get("/books/stream/").getvalue() == b"A\nB\nC\n"


def test_admin_client(admin_client, book):
    response = admin_client.get("/admin/books/book/")
    assert response.status_code == 200
    assert book.title in response.content.decode()
    response = admin_client.post(
        "/admin/books/book/add/", {"title": "By an admin", "copies": "2"}
    )
    assert response.status_code == 302
    assert Book.objects.get(title="By an admin").copies == 2


def test_admin_client_transactional(transactional_db, admin_client):
    assert admin_client.get("/admin/").status_code == 200


def test_sessions(db, client):
    assert client.get("/session/").content.startswith(b"1 ")
    assert client.get("/session/").content.startswith(b"2 ")


@pytest.mark.parametrize("database", ["db", "transactional_db"])
def test_async_client(request, async_client, database):
    request.getfixturevalue(database)
    Book.objects.create(title="Asynchronous")
    count = Book.objects.count()

    async def make_requests():
        responses = [await async_client.get("/books/async/") for _ in range(3)]
        responses += await asyncio.gather(
            *[async_client.get("/books/async/") for _ in range(5)],
            *[async_client.get("/books/") for _ in range(5)],
        )
        return [response.json()["count"] for response in responses]

    assert async_to_sync(make_requests)() == [count] * 13


def test_event_loop(transactional_db, needs_other_connections, async_client):
    """
    Without async_to_sync() the ORM runs in a thread that outlives the loop,
    and keeps its connection unless told not to.
    """
    Book.objects.create(title="Asynchronous")

    async def main():
        try:
            response = await async_client.get("/books/async/")
            books = [book.title async for book in Book.objects.all()]
            return response.json()["count"], books
        finally:
            await sync_to_async(connections.close_all)()

    assert asyncio.run(main()) == (1, ["Asynchronous"])


def test_async_threads(transactional_db, pool):
    """Threads that asyncio shares out among tasks take turns, too."""
    Book.objects.create(title="Asynchronous")

    def count():
        try:
            return Book.objects.count()
        finally:
            connection.close()

    async def main():
        return await asyncio.gather(*[asyncio.to_thread(count) for _ in range(20)])

    assert asyncio.run(main()) == [1] * 20


MOMENT = datetime.datetime(2026, 1, 1, 12, tzinfo=datetime.timezone.utc)


def get_session_time_zone(using=connection):
    """Return the time zone that the server has for the session, if any."""
    if connection.vendor != "postgresql":
        return None
    with using.cursor() as cursor:
        cursor.execute("SHOW timezone")
        return cursor.fetchone()[0]


def check_time_zone(name):
    book = Book.objects.create(
        title=name, added_at=MOMENT if name == "UTC" else timezone.make_naive(MOMENT)
    )
    book.refresh_from_db()
    if name == "UTC":
        assert book.added_at == MOMENT
    else:
        assert book.added_at == datetime.datetime(2026, 1, 1, 21)
    assert get_session_time_zone() in {None, name}


def test_time_zone(db, settings):
    check_time_zone("UTC")
    settings.USE_TZ = False
    settings.TIME_ZONE = "Asia/Tokyo"
    check_time_zone("Asia/Tokyo")


def test_time_zone_restored(db):
    check_time_zone("UTC")


# The settings are restored when the connection is back already.
@pytest.mark.parametrize("number", [1, 2])
def test_time_zone_outside(settings, number, request):
    settings.USE_TZ = False
    settings.TIME_ZONE = "Asia/Tokyo"
    request.getfixturevalue("transactional_db")
    check_time_zone("Asia/Tokyo")


def test_time_zone_restored_outside(transactional_db):
    check_time_zone("UTC")


def test_time_zone_elsewhere(transactional_db, pool, settings):
    """Other connections, too, have the time zone of the settings."""
    other = connection.copy()
    try:
        assert get_session_time_zone(other) in {None, "UTC"}
        other.close()
        settings.USE_TZ = False
        settings.TIME_ZONE = "Asia/Tokyo"
        assert get_session_time_zone(other) in {None, "Asia/Tokyo"}
    finally:
        other.close()
