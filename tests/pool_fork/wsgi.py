"""
A WSGI application that uses the pool while it's loaded, which for gunicorn
--preload is before the workers are forked.
"""

import os

import scripts

scripts.configure(
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF="pool_fork.wsgi",
    SECRET_KEY="not-secret-in-tests",
)

from django.core.wsgi import get_wsgi_application  # NOQA: E402
from django.db import connection  # NOQA: E402
from django.db.pool import pools  # NOQA: E402
from django.http import JsonResponse  # NOQA: E402
from django.urls import path  # NOQA: E402

# One connection stays in use, another one becomes idle.
other = connection.copy()
parent_sessions = [scripts.get_session(connection), scripts.get_session(other)]
other.close()
parent_pid = os.getpid()


def report(request):
    session = scripts.get_session(connection)
    stats = pools["default"].stats()
    return JsonResponse(
        {
            "pid": os.getpid(),
            "session": session,
            "parent_pid": parent_pid,
            "parent_sessions": parent_sessions,
            "size": stats.size,
        }
    )


urlpatterns = [path("", report)]
application = get_wsgi_application()
