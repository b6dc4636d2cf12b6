"""Tests that use several databases."""

import pytest
from books.models import Book

from django.db import connections
from django.test.testcases import DatabaseOperationForbidden


@pytest.mark.django_db(databases=["default", "archive"])
def test_two():
    Book.objects.using("archive").create(title="Old")
    assert not Book.objects.filter(title="Old").exists()


@pytest.mark.django_db(databases=["archive"])
def test_other_one():
    assert not Book.objects.using("archive").filter(title="Old").exists()
    with pytest.raises(DatabaseOperationForbidden, match="queries to 'default'"):
        Book.objects.count()


def test_not_allowed(db):
    with pytest.raises(DatabaseOperationForbidden, match="queries to 'archive'"):
        Book.objects.using("archive").count()


@pytest.mark.django_db(transaction=True, databases="__all__")
def test_mirror(needs_other_connections):
    """The replica is the default database, on another connection."""
    Book.objects.create(title="New")
    Book.objects.using("archive").create(title="Old")
    assert Book.objects.using("replica").get().title == "New"
    replica, default = connections["replica"], connections["default"]
    assert replica.settings_dict["NAME"] == default.settings_dict["NAME"]
    assert replica.connection is not default.connection
    assert replica.connection_pool is not default.connection_pool
    assert replica.connection_pool.stats().in_use == 1


def test_pools(pool):
    """Each alias has a pool of its own."""
    names = [connection.connection_pool.name for connection in connections.all()]
    assert sorted(names) == ["archive", "default", "replica"]
