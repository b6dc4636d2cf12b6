"""Tests within a transaction, by the mark or the fixture."""

import pytest
from books.models import Book, Shop

from django.db import IntegrityError, connection, transaction


@pytest.mark.django_db
def test_mark():
    Book.objects.create(title="Marked")
    assert Book.objects.filter(title="Marked").count() == 1
    assert connection.in_atomic_block is True


# The same twice: what one test did, the next one doesn't see.
@pytest.mark.parametrize("number", [1, 2])
def test_fixture(db, number):
    assert not Book.objects.filter(title="Unique").exists()
    Book.objects.create(title="Unique")


@pytest.mark.django_db
class TestClass:
    def test_populated(self):
        assert Shop.objects.get().name == "Populated"

    def test_fixture_with_data(self, book):
        Book.objects.filter(pk=book.pk).update(copies=5)
        book.refresh_from_db()
        assert book.copies == 5

    def test_fixture_with_data_again(self, book):
        assert book.copies == 1


@pytest.mark.django_db
def test_module_fixture(book_of_module):
    book_of_module.copies = 3
    book_of_module.save()


@pytest.mark.django_db
def test_module_fixture_again(book_of_module):
    assert Book.objects.get(pk=book_of_module.pk).copies == 0


def test_error_in_atomic_block(db, book):
    with pytest.raises(IntegrityError):
        with transaction.atomic():
            Book.objects.create(title=book.title)
    assert Book.objects.filter(title=book.title).count() == 1


@pytest.mark.xfail(raises=IntegrityError)
def test_failing(db, book):
    """A test that fails leaves a broken transaction behind."""
    Book.objects.create(title=book.title)


def test_after_failing(db):
    assert not Book.objects.filter(title="Of a fixture").exists()


def test_num_queries(
    db, django_assert_num_queries, django_assert_max_num_queries, book
):
    with django_assert_num_queries(2) as captured:
        Book.objects.count()
        book.refresh_from_db()
    assert "COUNT" in captured[0]["sql"]
    with django_assert_max_num_queries(1):
        Book.objects.get(pk=book.pk)


def test_on_commit(db, django_capture_on_commit_callbacks):
    calls = []
    with django_capture_on_commit_callbacks(execute=True) as callbacks:
        transaction.on_commit(lambda: calls.append("first"))
        with transaction.atomic():
            transaction.on_commit(lambda: calls.append("second"))
    assert calls == ["first", "second"]
    assert len(callbacks) == 2


def test_pool_in_use(db, pool):
    """The whole test runs on one connection of the pool's."""
    Book.objects.count()
    assert connection.connection_pool is pool
    assert pool.stats().in_use == 1
    acquired = pool.stats().acquired
    Book.objects.count()
    assert pool.stats().acquired == acquired
