"""What the series does to Django's documentation."""

from edits import add, fragment, insert_after, insert_before, replace

# For the sections on the pools that drivers have.
SEE_ALSO = """\
.. seealso::

    :ref:`connection-pools` are for all databases. See
    :ref:`connection-pools-moving` on how to use them instead.

"""

# The end of a sentence on how many connections requests use.
TRANSACTION_MODE = """\
or use the :ref:`transaction mode <connection-pools-transaction-mode>`, in
which requests use a connection only while they query the database.
"""

# Behind the paragraph that says that transactions don't work in async mode.
TASKS = """
For SQL of your own, the :ref:`connection pool <connection-pools>` of a
database lends connections to coroutines, which can use transactions::

    from django.db.pool import aconnection


    async def transfer(source, target, amount):
        async with aconnection() as connection, connection.atomic():
            async with connection.cursor() as cursor:
                await cursor.execute(...)
                await cursor.execute(...)

See :ref:`connection-pools-tasks` for details. The ORM doesn't use these
connections, so its queries aren't part of such transactions.
"""

DOCS_FILES = [
    add("docs/releases/6.2.txt"),
]

DOCS_EDITS = [
    # The setting, and what it means for others.
    insert_before(
        "docs/ref/settings.txt",
        ".. setting:: PORT\n",
        fragment("ref/settings.pool.txt"),
    ),
    insert_before(
        "docs/ref/settings.txt",
        ".. setting:: CONN_HEALTH_CHECKS\n",
        "It must be ``0`` if the database has a :ref:`connection pool\n"
        "<connection-pools>`.\n"
        "\n",
    ),
    insert_before(
        "docs/ref/settings.txt",
        ".. setting:: OPTIONS\n",
        ":ref:`Connection pools <connection-pools>` check connections in any case. "
        "If\n"
        "set to ``True``, they query the database if a connection hasn't been used "
        "for\n"
        "half a second.\n"
        "\n",
    ),
    # The guide.
    replace(
        "docs/ref/databases.txt",
        "When using ASGI, persistent connections should be disabled. Instead, use "
        "your\n"
        "database backend's built-in connection pooling if available, or "
        "investigate a\n"
        "third-party connection pooling option if required.\n",
        "When using ASGI, persistent connections should be disabled. Instead, use\n"
        ":ref:`connection pools <connection-pools>`.\n",
    ),
    insert_before(
        "docs/ref/databases.txt",
        "Encoding\n--------\n",
        fragment("ref/databases.pools.txt"),
    ),
    # Not for 6.1: there, all lines near which it could be differ between 6.1.0
    # and its newest release. The guide refers to that section, anyway.
    insert_before(
        "docs/ref/databases.txt",
        ".. _database-server-side-parameters-binding:\n",
        SEE_ALSO,
        versions=["5.2", "6.0"],
    ),
    insert_before("docs/ref/databases.txt", ".. _`create_pool()`: ", SEE_ALSO),
    insert_before(
        "docs/ref/databases.txt",
        ".. _PgBouncer: https://www.pgbouncer.org/\n",
        "None of this is necessary for the :ref:`transaction mode\n"
        "<connection-pools-transaction-mode>` of Django's own connection pools.\n"
        "\n",
    ),
    # Reference pages.
    insert_before(
        "docs/ref/checks.txt",
        "MySQL and MariaDB\n~~~~~~~~~~~~~~~~~\n",
        fragment("ref/checks.pool.txt"),
    ),
    insert_before(
        "docs/ref/exceptions.txt",
        ".. currentmodule:: django.http\n",
        fragment("ref/exceptions.pool.txt"),
    ),
    insert_before(
        "docs/ref/logging.txt",
        ".. _django-contrib-sessions-logger:\n",
        fragment("ref/logging.pool.txt"),
    ),
    insert_after(
        "docs/ref/signals.txt",
        "connection commands to the SQL backend.\n",
        "\n"
        "If the database has a :ref:`connection pool <connection-pools>`, this "
        "signal is\n"
        "sent each time that the database wrapper borrows a connection from it, "
        "whether\n"
        "or not that connection has been used before. In :ref:`transaction mode\n"
        "<connection-pools-transaction-mode>`, it's sent once for each physical\n"
        "connection, and at least once by each database wrapper.\n",
    ),
    # Topics and how-tos.
    replace(
        "docs/topics/async.txt",
        "Instead, use your database backend's built-in connection pooling if "
        "available,\n"
        "or investigate a third-party connection pooling option if required.\n",
        "Instead, use :ref:`connection pools <connection-pools>`. A request that "
        "queries\n"
        "the database uses a connection until it ends, so choose the ``max_size`` "
        "of\n"
        ":setting:`POOL <DATABASE-POOL>` by the number of such requests in a "
        "process,\n" + TRANSACTION_MODE,
        versions=["5.2"],
    ),
    insert_after(
        "docs/topics/async.txt",
        "synchronous function and call it using :func:`sync_to_async`.\n",
        TASKS,
    ),
    # The newest releases of 6.0 say more than the first, so the text as such
    # stays.
    insert_before(
        "docs/topics/async.txt",
        ":ref:`Persistent database connections <persistent-database-connections>`, "
        "set\n",
        "To reuse database connections, enable :ref:`connection pools\n"
        "<connection-pools>` with the :setting:`POOL <DATABASE-POOL>` setting. A "
        "request\n"
        "that queries the database uses a connection until it ends, so choose the\n"
        "``max_size`` option by the number of such requests in a process,\n"
        + TRANSACTION_MODE
        + "\n",
        versions=["6.0"],
    ),
    replace(
        "docs/topics/async.txt",
        "Instead, use your database backend's built-in connection pooling if "
        "available,\n"
        "or investigate a third-party connection pooling option if required. As in\n"
        "synchronous Django, concurrent requests in a single process share that "
        "pool, so\n"
        "size it to the target in-flight query concurrency.\n",
        "Instead, use :ref:`connection pools <connection-pools>`. As in "
        "synchronous\n"
        "Django, concurrent requests in a single process share the pool. A request "
        "that\n"
        "queries the database uses a connection until it ends, so choose the\n"
        "``max_size`` of :setting:`POOL <DATABASE-POOL>` by the number of such "
        "requests\n"
        "in a process,\n" + TRANSACTION_MODE,
        versions=["6.1"],
    ),
    insert_after(
        "docs/howto/deployment/checklist.txt",
        "This helps a lot on virtualized hosts with limited network performance.\n",
        "\n"
        ":ref:`Connection pools <connection-pools>`, enabled via :setting:`POOL\n"
        "<DATABASE-POOL>`, have the same effect, limit the number of connections, "
        "and\n"
        "are suitable for ASGI.\n",
    ),
    # Release notes.
    insert_after(
        "docs/releases/index.txt",
        ".. _development_release_notes:\n\n",
        "6.2 release\n-----------\n.. toctree::\n   :maxdepth: 1\n\n   6.2\n\n",
    ),
]
