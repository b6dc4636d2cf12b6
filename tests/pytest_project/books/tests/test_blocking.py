"""Without a mark or fixture, there is no way to the database."""

import threading

import pytest
from books.models import Book

from django.db import connection

MESSAGE = "Database access not allowed"


def test_orm():
    with pytest.raises(RuntimeError, match=MESSAGE):
        Book.objects.count()


def test_cursor():
    with pytest.raises(RuntimeError, match=MESSAGE):
        connection.cursor()


def test_ensure_connection():
    with pytest.raises(RuntimeError, match=MESSAGE):
        connection.ensure_connection()


def test_copy():
    wrapper = connection.copy()
    with pytest.raises(RuntimeError, match=MESSAGE):
        wrapper.cursor()


def test_thread():
    errors = []

    def use():
        try:
            Book.objects.count()
        except RuntimeError as e:
            errors.append(str(e))

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert len(errors) == 1
    assert MESSAGE in errors[0]


def test_client(client):
    with pytest.raises(RuntimeError, match=MESSAGE):
        client.get("/books/")


def test_nothing_acquired(pool):
    """A refused access doesn't get as far as the pool."""
    acquired = pool.stats().acquired
    with pytest.raises(RuntimeError, match=MESSAGE):
        Book.objects.count()
    assert pool.stats().acquired == acquired


def test_blocker(django_db_setup, django_db_blocker):
    with django_db_blocker.unblock():
        count = Book.objects.count()
        with django_db_blocker.block():
            with pytest.raises(RuntimeError, match=MESSAGE):
                Book.objects.count()
        assert Book.objects.count() == count
    with pytest.raises(RuntimeError, match=MESSAGE):
        Book.objects.count()
    connection.close()
