"""Views, and the URLs of these, for servers and for Django's test client."""

import asyncio

from django.db import connection
from django.db.pool import PoolError, aconnection, pools
from django.http import HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path

from .models import NumberRow

# A statement that takes until it's cancelled, or somebody lets go of the rows.
SLOW_SQL = (
    "WITH RECURSIVE c (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x > 0) "
    "SELECT max(x) FROM c"
    if connection.vendor == "sqlite"
    else "UPDATE pool_asgi_numberrow SET number = number"
)

# What was read at the start of the server, and by tasks of requests.
startup = []
finished = []

tasks = set()
may_finish = asyncio.Event()


async def read(number):
    async with aconnection() as conn, conn.cursor() as cursor:
        await cursor.execute(
            "SELECT number FROM pool_asgi_numberrow WHERE id = %s", [number]
        )
        return (await cursor.fetchone())[0]


async def stats(request):
    stats = pools["default"].stats()
    names = ["in_use", "waiting", "size", "idle", "lost", "timeouts", "max_size"]
    report = {name: getattr(stats, name) for name in names}
    return JsonResponse(
        {
            **report,
            "highest": get_highest(),
            "startup": startup,
            "finished": finished,
            "tasks": len(tasks),
        }
    )


def get_highest():
    """Return how many connections the pool has had at most."""
    from . import project

    return project.meter.highest


def sync_view(request):
    return HttpResponse(NumberRow.objects.get(pk=1).number)


async def async_view(request):
    return HttpResponse(await read(2))


async def parallel_view(request):
    """Have more than one connection, one after the other in case of need."""
    numbers = await asyncio.gather(read(1), read(2), read(3))
    async with aconnection() as conn, conn.atomic():
        async with conn.cursor() as cursor:
            await cursor.execute("SELECT max(number) FROM pool_asgi_numberrow")
            numbers.append((await cursor.fetchone())[0])
    return HttpResponse(" ".join(map(str, numbers)))


async def orm_view(request):
    row = await NumberRow.objects.aget(pk=3)
    return HttpResponse("%d of %d" % (row.number, await NumberRow.objects.acount()))


async def failing_view(request):
    """Leave a transaction by an error, and say so."""
    try:
        async with aconnection() as conn, conn.atomic():
            await asyncio.create_task(read(1))
    except PoolError as e:
        return HttpResponse(str(e))


async def streaming_view(request):
    """Read a row for each chunk: each by its own connection, or by one."""

    async def stream():
        for number in [1, 2, 3]:
            yield "%d\n" % await read(number)
        async with aconnection() as conn:
            for number in [1, 2, 3]:
                async with conn.cursor() as cursor:
                    await cursor.execute(
                        "SELECT number FROM pool_asgi_numberrow WHERE id = %s", [number]
                    )
                    yield "%d\n" % (await cursor.fetchone())[0]
                # It's the same task's, and so the same connection.
                await read(number)

    return StreamingHttpResponse(stream())


async def endless_view(request):
    """Stream until nobody listens anymore."""

    async def stream():
        async with aconnection() as conn, conn.atomic():
            while True:
                async with conn.cursor() as cursor:
                    await cursor.execute("SELECT number FROM pool_asgi_numberrow")
                    await cursor.fetchall()
                yield "more\n"
                await asyncio.sleep(0.001)

    return StreamingHttpResponse(stream())


async def background_view(request):
    """Start a task that goes on after the request."""

    async def work():
        await may_finish.wait()
        finished.append(await read(3))

    task = asyncio.create_task(work())
    tasks.add(task)
    task.add_done_callback(tasks.discard)
    return HttpResponse("started")


async def finish_view(request):
    may_finish.set()
    return HttpResponse("finishing")


async def slow_view(request):
    async with aconnection() as conn, conn.cursor() as cursor:
        await cursor.execute(SLOW_SQL)
    return HttpResponse("not cancelled")


def slow_sync_view(request):
    with connection.cursor() as cursor:
        cursor.execute(SLOW_SQL)
    return HttpResponse("not cancelled")


urlpatterns = [
    path("stats/", stats),
    path("sync/", sync_view),
    path("async/", async_view),
    path("parallel/", parallel_view),
    path("orm/", orm_view),
    path("failing/", failing_view),
    path("streaming/", streaming_view),
    path("endless/", endless_view),
    path("background/", background_view),
    path("finish/", finish_view),
    path("slow/", slow_view),
    path("slow-sync/", slow_sync_view),
]
