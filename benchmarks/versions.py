"""What a run was made with."""

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version

SERVERS = {"postgresql": "PostgreSQL", "mysql": "MariaDB"}

PACKAGES = [
    "Django",
    "psycopg",
    "psycopg_pool",
    "mysqlclient",
    "asyncpg",
    "SQLAlchemy",
    "django-db-connection-pool",
    "django-pg-real-pool",
    "gunicorn",
    "uvicorn",
    "uvloop",
    "httptools",
    "aiohttp",
]


def get_version(package):
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def get_system():
    name = "%s %s" % (platform.system(), platform.machine())
    try:
        return "%s (%s)" % (name, platform.freedesktop_os_release()["PRETTY_NAME"])
    except (OSError, KeyError, AttributeError):
        return name


def get_cores():
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def get_versions():
    import sqlite3

    import django_pool_patch

    return {
        "django-pool-patch": django_pool_patch.__version__,
        "Python": "%s %s%s"
        % (
            platform.python_implementation(),
            platform.python_version(),
            "" if getattr(sys, "_is_gil_enabled", lambda: True)() else " without a GIL",
        ),
        "System": get_system(),
        "Cores": str(get_cores()),
        **{package: get_version(package) for package in PACKAGES},
        "SQLite": sqlite3.sqlite_version,
    }


def get_pgbouncer(program):
    output = subprocess.run(
        [program, "--version"], stdout=subprocess.PIPE, text=True
    ).stdout
    return output.splitlines()[0].removeprefix("PgBouncer ") if output else "unknown"
