"""Tests that commit: the databases are flushed after each of them."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from books.models import Book, Genre

from django.db import IntegrityError, connection, transaction
from django.db.models import F


@pytest.mark.django_db(transaction=True)
def test_mark():
    assert connection.in_atomic_block is False
    Book.objects.create(title="Committed")


def test_fixture(transactional_db):
    assert not Book.objects.filter(title="Committed").exists()
    calls = []
    with transaction.atomic():
        transaction.on_commit(lambda: calls.append("committed"))
        assert calls == []
    assert calls == ["committed"]


@pytest.mark.xfail(raises=IntegrityError)
def test_failing(transactional_db):
    """The connection is returned by a test that failed in a transaction."""
    with transaction.atomic():
        Book.objects.create(title="Twice")
        Book.objects.create(title="Twice")


def test_without_autocommit(transactional_db):
    transaction.set_autocommit(False)
    try:
        Book.objects.create(title="Not committed")
    finally:
        transaction.rollback()
        transaction.set_autocommit(True)


def test_after_failing(transactional_db):
    assert transaction.get_autocommit() is True
    assert Book.objects.count() == 0


# The same twice: the sequences begin anew.
@pytest.mark.django_db(transaction=True, reset_sequences=True)
@pytest.mark.parametrize("number", [1, 2])
def test_reset_sequences(number):
    assert Book.objects.create(title="First").pk == 1


def test_reset_sequences_fixture(django_db_reset_sequences):
    assert Book.objects.create(title="First").pk == 1


# The same twice: what the test deletes, and what is flushed, comes back.
@pytest.mark.django_db(transaction=True, serialized_rollback=True)
@pytest.mark.parametrize("number", [1, 2])
def test_serialized_rollback(number, genres_at_start):
    assert set(Genre.objects.values_list("name", flat=True)) == genres_at_start
    Genre.objects.all().delete()


def test_serialized_rollback_fixture(
    transactional_db, django_db_serialized_rollback, genres_at_start
):
    assert set(Genre.objects.values_list("name", flat=True)) == genres_at_start


def test_num_queries(transactional_db, django_assert_num_queries):
    """Coming back from the pool, a connection needs no queries."""
    Book.objects.count()
    connection.close()
    with django_assert_num_queries(1):
        Book.objects.count()


def test_same_connection_again(transactional_db, pool):
    Book.objects.count()
    first, opened = connection.connection, pool.stats().opened
    connection.close()
    assert pool.stats().in_use == 0
    Book.objects.count()
    assert connection.connection is first
    assert pool.stats().opened == opened


def add_copy(pk):
    try:
        Book.objects.filter(pk=pk).update(copies=F("copies") + 1)
    finally:
        connection.close()


def test_threads(transactional_db, pool):
    """More threads than connections: they take turns."""
    book = Book.objects.create(title="Counted")
    with ThreadPoolExecutor(8) as executor:
        list(executor.map(add_copy, [book.pk] * 40))
    book.refresh_from_db()
    assert book.copies == 40
    assert pool.stats().in_use == 1


def test_threads_in_transactions(transactional_db, pool):
    """Each thread has a transaction of its own."""
    count = pool.options.max_size - 1
    barrier = threading.Barrier(count)
    seen = []

    def look():
        try:
            with transaction.atomic():
                Book.objects.count()
                barrier.wait(30)
                seen.append(connection.connection)
        finally:
            connection.close()

    threads = [threading.Thread(target=look) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(value) for value in seen}) == count


def test_thread_that_forgets(transactional_db, pool):
    """
    Threads that end without closing their connections don't keep them from
    those that come after.
    """
    for _ in range(2 * pool.options.max_size):
        thread = threading.Thread(target=Book.objects.count)
        thread.start()
        thread.join()
