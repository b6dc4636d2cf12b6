"""The project for ASGI servers, with a lifespan if the server has that."""

import sys

from . import project  # NOQA: F401

from django.core.asgi import get_asgi_application  # NOQA: E402 isort:skip
from django.db.pool import apools  # NOQA: E402 isort:skip

from . import views  # NOQA: E402 isort:skip

django_application = get_asgi_application()


async def application(scope, receive, send):
    if scope["type"] != "lifespan":
        return await django_application(scope, receive, send)
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            views.startup.append(await views.read(1))
            await send({"type": "lifespan.startup.complete"})
        else:
            stats = apools["default"].stats()
            print(
                "shutdown: %d in use, %d waiting" % (stats.in_use, stats.waiting),
                file=sys.stderr,
                flush=True,
            )
            await send({"type": "lifespan.shutdown.complete"})
            return
