"""
The site that is served: settings, views and applications in one module.

The environment variable BENCHMARK_SITE has what depends on the policy, as
JSON: "database", and whether there is the overlay.
"""

import asyncio
import json
import os
import sys
import time

SITE = json.loads(os.environ["BENCHMARK_SITE"])
if SITE["has_overlay"]:
    sys.path.append(SITE["root"])

from asgiref.sync import sync_to_async  # NOQA: E402

import django  # NOQA: E402
from django.conf import settings  # NOQA: E402

settings.configure(
    ALLOWED_HOSTS=["*"],
    DATABASES={"default": SITE["database"]},
    DEBUG=False,
    INSTALLED_APPS=["django_pool_patch"] if SITE["has_overlay"] else [],
    # Hundreds of errors per second shouldn't be what is measured.
    LOGGING_CONFIG=None,
    MIDDLEWARE=[],
    ROOT_URLCONF=__name__,
    SECRET_KEY="nothing is signed with this",
    USE_TZ=False,
)
django.setup()

from django.core.asgi import get_asgi_application  # NOQA: E402
from django.core.wsgi import get_wsgi_application  # NOQA: E402
from django.db import connection  # NOQA: E402
from django.http import HttpResponse, StreamingHttpResponse  # NOQA: E402
from django.urls import path  # NOQA: E402

if ("django_pool_patch" in sys.modules) != SITE["has_overlay"]:
    raise AssertionError("The overlay is where it shouldn't be, or isn't.")

PAUSE = 0.05

# What a stream ends with, unless it ends early.
END = b"end\n"


def query():
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        return cursor.fetchone()[0]


def get_stream_options(request):
    return int(request.GET["chunks"]), float(request.GET["pause"])


def get_failure(error):
    """Return the last chunk of a stream that ends early."""
    return ("error %s\n" % type(error).__name__).encode()


def ready(request):
    return HttpResponse("ready")


def one(request):
    return HttpResponse(str(query()))


def pause(request):
    first = query()
    time.sleep(PAUSE)
    return HttpResponse(str(first + query()))


def stream(request):
    chunks, seconds = get_stream_options(request)

    def generate():
        try:
            for number in range(chunks):
                if number:
                    time.sleep(seconds)
                yield b"%d\n" % query()
        except Exception as e:
            yield get_failure(e)
        else:
            yield END

    return StreamingHttpResponse(generate())


async def async_one(request):
    return HttpResponse(str(await sync_to_async(query)()))


async def async_pause(request):
    first = await sync_to_async(query)()
    await asyncio.sleep(PAUSE)
    return HttpResponse(str(first + await sync_to_async(query)()))


async def async_stream(request):
    chunks, seconds = get_stream_options(request)

    async def generate():
        try:
            for number in range(chunks):
                if number:
                    await asyncio.sleep(seconds)
                yield b"%d\n" % await sync_to_async(query)()
        except Exception as e:
            yield get_failure(e)
        else:
            yield END

    return StreamingHttpResponse(generate())


def handler500(request):
    """Tell what the error was, for it to be counted."""
    error = sys.exc_info()[1]
    return HttpResponse("error %s\n" % type(error).__name__, status=500)


IS_ASYNC = SITE["server"] == "asgi"

urlpatterns = [
    path("ready/", ready),
    path("one/", async_one if IS_ASYNC else one),
    path("pause/", async_pause if IS_ASYNC else pause),
    path("stream/", async_stream if IS_ASYNC else stream),
]

application = get_asgi_application() if IS_ASYNC else get_wsgi_application()
