"""
The fixtures of the project: its databases' initial data, and the tests' eyes
on the pools.

What the pools say after each test is appended, as a line of JSON, to the file
that POOL_TEST_REPORT names, followed by the name of the xdist worker.
"""

import gc
import json
import os
import time
from pathlib import Path

import pytest

# Seconds. Nothing takes that long unless something is wrong.
TIMEOUT = 10

# Where a test's database is noted: after the last test, it's gone.
database_key = pytest.StashKey()
# And which of its databases have a pool: databases in memory have none.
aliases_key = pytest.StashKey()


def pytest_ignore_collect(collection_path, config):
    """
    Leave the project alone when it isn't the one that pytest runs for, as in
    a run for the repository around it.
    """
    if config.rootpath != Path(__file__).resolve().parent:
        return True


# The data that tests rely on, as in pytest-django's documentation.


@pytest.fixture(scope="session")
def genres_at_start():
    """
    The names of the genres there were after the databases were set up: those
    of the migration, unless they weren't used, or the databases are reused.
    """
    return set()


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup, django_db_blocker, genres_at_start):
    from books.models import Genre, Shop

    with django_db_blocker.unblock():
        genres_at_start.update(Genre.objects.values_list("name", flat=True))
        # There may be one already, if the databases are reused.
        Shop.objects.get_or_create(name="Populated")


@pytest.fixture(scope="module")
def book_of_module(django_db_setup, django_db_blocker):
    """A book for a whole module, made outside of any test's transaction."""
    from books.models import Book

    with django_db_blocker.unblock():
        book = Book.objects.create(title="Of a module")
    yield book
    with django_db_blocker.unblock():
        book.delete()


@pytest.fixture
def book(db):
    from books.models import Book

    return Book.objects.create(title="Of a fixture", copies=1)


@pytest.fixture
def needs_other_connections(django_db_setup):
    """Skip tests that can't run with a database in memory."""
    from django.db import connection

    if connection.vendor == "sqlite" and connection.is_in_memory_db():
        pytest.skip("The database belongs to one connection.")


# The pools.


def get_pools():
    """Return the pools there are, by alias."""
    from django.db.pool import pools

    return {alias: pools[alias] for alias in pools}


@pytest.fixture
def pool(needs_other_connections):
    """The pool of the default database."""
    return get_pools()["default"]


def uses_transactions(item):
    """Return whether a test's end closes its connections."""
    from django.test import TestCase, TransactionTestCase

    if getattr(item, "cls", None) and issubclass(item.cls, TransactionTestCase):
        return not issubclass(item.cls, TestCase)
    marker = item.get_closest_marker("django_db")
    return (marker is not None and marker.kwargs.get("transaction", False)) or bool(
        {"transactional_db", "live_server", "django_db_reset_sequences"}
        & set(item.fixturenames)
    )


def wait_for_threads(pool):
    """
    Wait until nothing is in use, and return the statistics. A client has its
    response while the server's thread is still busy with the request's end.
    """
    deadline = time.monotonic() + TIMEOUT
    if pool.stats().in_use:
        # What ended threads had lies in reference cycles, and comes back when
        # somebody waits or at the next housekeeping.
        gc.collect()
        pool.reap()
    while (stats := pool.stats()).in_use and time.monotonic() < deadline:
        time.sleep(0.001)
    return stats


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item):
    """
    Check the pools after each test, when its fixtures are torn down. What
    fails here is an error of the test's.
    """
    result = yield
    from django.db import connection, connections

    report = {
        "test": item.nodeid,
        "driver": connection.Database.__name__,
        "database": item.stash.get(database_key, None),
        "pools": {},
    }
    for alias, pool in get_pools().items():
        stats = wait_for_threads(pool) if uses_transactions(item) else pool.stats()
        assert stats.size <= stats.max_size, (alias, stats)
        assert stats.waiting == 0, (alias, stats)
        if uses_transactions(item):
            assert stats.in_use == 0, (alias, stats)
            if alias in item.stash.get(aliases_key, []):
                assert connections[alias].connection is None
        else:
            # Such a test may leave its connection to the next one.
            assert stats.in_use <= 1, (alias, stats)
        assert stats.connect_errors == stats.timeouts == 0, (alias, stats)
        report["pools"][alias] = {
            name: getattr(stats, name)
            for name in ["size", "in_use", "acquired", "reused", "opened", "lost"]
        }
    path = "%s-%s" % (
        os.environ["POOL_TEST_REPORT"],
        os.environ.get("PYTEST_XDIST_WORKER", "main"),
    )
    with open(path, "a") as file:
        file.write("%s\n" % json.dumps(report))
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Note what a test runs on."""
    from django.db import connection

    item.stash[database_key] = str(connection.settings_dict["NAME"])
    item.stash[aliases_key] = list(get_pools())
    return (yield)
