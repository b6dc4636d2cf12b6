"""Tests with a server whose threads use the pool."""

import http.client
import json
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from books.models import Book

# Seconds. Nothing takes that long unless something is wrong.
TIMEOUT = 30


def fetch(url):
    with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
        return response.read()


def test_request(live_server):
    Book.objects.create(title="By the test")
    assert json.loads(fetch(live_server + "/books/")) == {"count": 1}


@pytest.mark.django_db(transaction=True)
def test_request_with_mark(live_server):
    fetch(live_server + "/books/add/Novel/")
    assert Book.objects.get().title == "Novel"


def test_error(live_server):
    """A request that fails in a transaction gives its connection back."""
    with pytest.raises(urllib.error.HTTPError, match="500") as caught:
        fetch(live_server + "/books/broken/")
    caught.value.close()
    assert Book.objects.count() == 0


def test_many_requests(live_server, pool):
    """More requests at the same time than connections: they take turns."""
    Book.objects.count()
    urls = [live_server + "/books/add/%d/" % number for number in range(40)]
    with ThreadPoolExecutor(12) as executor:
        keys = {json.loads(body)["pk"] for body in executor.map(fetch, urls)}
    assert len(keys) == 40
    assert set(Book.objects.values_list("pk", flat=True)) == keys
    assert pool.stats().size <= pool.options.max_size


def test_async_view(live_server, needs_other_connections):
    """
    The threads can't share the connection of a database in memory at the same
    time: now and then one gets the result of another one's query.
    """
    Book.objects.create(title="By the test")
    with ThreadPoolExecutor(6) as executor:
        bodies = list(executor.map(fetch, [live_server + "/books/async/"] * 12))
    assert {json.loads(body)["count"] for body in bodies} == {1}


def test_streaming(live_server):
    for title in ["A", "B", "C"]:
        Book.objects.create(title=title)
    assert fetch(live_server + "/books/stream/") == b"A\nB\nC\n"


def test_keep_alive(live_server, pool):
    """A thread that waits for the next request holds no connection."""
    connections = [
        http.client.HTTPConnection(
            live_server.thread.host, live_server.thread.port, timeout=TIMEOUT
        )
        for _ in range(pool.options.max_size + 2)
    ]
    try:
        for _ in range(3):
            for connection in connections:
                connection.request("GET", "/books/")
                response = connection.getresponse()
                assert json.loads(response.read()) == {"count": 0}
    finally:
        for connection in connections:
            connection.close()


def test_static_files(live_server):
    assert b"" != fetch(live_server + "/static/admin/css/base.css")


def test_serialized_rollback(
    live_server, django_db_serialized_rollback, genres_at_start
):
    from books.models import Genre

    assert set(Genre.objects.values_list("name", flat=True)) == genres_at_start
