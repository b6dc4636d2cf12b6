"""
The patch series: what is proposed to Django, commit by commit.

New files are the overlay's. The edits of Django's own files are below, and,
where they are edits of its documentation, in docs_edits.py. The same edits are
made by django_pool_patch/install.py where Django isn't patched; a test holds
the two equal.
"""

from docs_edits import DOCS_EDITS, DOCS_FILES
from edits import Commit, add, add_all, insert_after, insert_before, replace

BASE = "django/db/backends/base/base.py"
CREATION = "django/db/backends/base/creation.py"
POSTGRESQL = "django/db/backends/postgresql/base.py"
ORACLE = "django/db/backends/oracle/base.py"
MYSQL = "django/db/backends/mysql/base.py"
SQLITE = "django/db/backends/sqlite3/base.py"
SIGNALS = "django/contrib/postgres/signals.py"

POOL_PACKAGE = Commit(
    subject="Added connection pools.",
    body="""
        django.db.pool knows nothing of settings and backends. A pool lends what
        a connector opens, to threads and to the tasks of event loops, and takes
        it back. Its rules are in core.py, which does no I/O and knows no
        threads and no clock, so that they can be tested through every
        interleaving.

        Nothing uses it yet.
        """,
    changes=add_all("django/db/pool"),
)

STATEMENTS = Commit(
    subject="Added recognition of statements that touch the session.",
    body="""
        Settings, temporary tables, advisory locks and the like outlive a
        transaction. Whoever runs such a statement needs the same connection
        afterwards, and the next user of it a session that was reset.

        Nothing uses it yet.
        """,
    changes=[
        add("django/db/backends/%s/statements.py" % backend)
        for backend in ["base", "mysql", "oracle", "postgresql", "sqlite3"]
    ],
)

ASYNC_UNSAFE = Commit(
    subject="Sped up async_unsafe().",
    body="""
        It's called several times for each query. Most of its time was spent on
        the exception that says that there's no running event loop.
        """,
    changes=[
        replace(
            "django/utils/asyncio.py",
            "from asyncio import get_running_loop\n",
            "from asyncio import _get_running_loop\n",
        ),
        replace(
            "django/utils/asyncio.py",
            """\
            try:
                get_running_loop()
            except RuntimeError:
                pass
            else:
                if not os.environ.get("DJANGO_ALLOW_ASYNC_UNSAFE"):
                    raise SynchronousOnlyOperation(message)
""",
            """\
            if _get_running_loop() is not None:
                if not os.environ.get("DJANGO_ALLOW_ASYNC_UNSAFE"):
                    raise SynchronousOnlyOperation(message)
""",
        ),
    ],
)

WRAPPERS = Commit(
    subject="Allowed database connections to be borrowed from a pool.",
    body="""
        With DATABASES[alias]["POOL"], connect() borrows a connection that has
        been opened and initialized already, and close() gives it back. Unlike a
        persistent connection, it isn't bound to a thread, so that there are no
        more connections than are needed at the same time, and no more than
        max_size, also under ASGI.

        In transaction mode it goes back as soon as a statement or a transaction
        is over, unless the session was touched or pinned() asks to keep it.
        Cursors tell when they don't need it anymore.

        The generic connector opens connections by means of a wrapper of its
        own, so that backends, third-party ones included, are supported without
        changes. What they can do better, they say in their connector_class.

        The connections of _nodb_cursor(), which aren't to any of the project's
        databases, aren't pooled.

        "async with aconnection()" gives a task a connection of its own from the
        same pool: cursors, transactions, errors, and query logging, as a thread
        has them, on every backend. The ORM doesn't use it.
        """,
    changes=[
        add("django/db/backends/base/asynchronous.py"),
        add("django/db/backends/base/lending.py"),
        add("django/db/backends/base/loops.py"),
        add("django/db/backends/base/pool.py"),
        add("django/db/backends/base/pooled_cursors.py"),
        insert_after(
            BASE,
            "from django.db.backends import utils\n",
            """\
from django.db.backends.base import lending
from django.db.backends.base.pool import DatabaseConnector
from django.db.backends.base.pooled_cursors import lends_cursor
""",
        ),
        insert_after(
            BASE,
            "from django.db.backends.utils import debug_transaction\n",
            "from django.db.pool import AsyncConnectionPool, ConnectionPool, pools\n",
        ),
        insert_after(
            BASE,
            "    validation_class = BaseDatabaseValidation\n",
            """\
    # Classes that the pool of the database is made of.
    async_pool_class = AsyncConnectionPool
    connector_class = DatabaseConnector
    pool_class = ConnectionPool
""",
        ),
        insert_after(
            BASE,
            "        self.validation = self.validation_class(self)\n",
            "        lending.set_up(self)\n",
        ),
        insert_before(
            BASE,
            """\
    # ##### Backend-specific methods for creating connections #####

    @async_unsafe
    def connect(self):
""",
            """\
    @property
    def connection_pool(self):
        \"\"\"The pool of the database, or None if it isn't pooled.\"\"\"
        return pools.for_wrapper(self)

    def close_pool(self):
        \"\"\"Close the pool of the database. The next use makes a new one.\"\"\"
        lending.close_pool(self)

    pin_reason = property(lending.get_pin_reason)
    pinned = lending.pinned

""",
        ),
        insert_after(
            BASE,
            """\
        \"\"\"Connect to the database. Assume that the connection is closed.\"\"\"
""",
            """\
        if (connection_pool := self.connection_pool) is not None:
            return lending.borrow(self, connection_pool)
""",
        ),
        insert_after(
            BASE,
            """\
        \"\"\"Close the connection to the database.\"\"\"
""",
            """\
        if lending.give_back(self):
            return
""",
        ),
        insert_before(
            BASE, "    def _cursor(self, name=None):\n", "    @lends_cursor\n"
        ),
        insert_before(
            BASE,
            "    def get_autocommit(self):\n",
            "    @lending.knows_autocommit\n",
        ),
        insert_before(
            BASE,
            """\
    def set_autocommit(
        self, autocommit, force_begin_transaction_with_broken_autocommit=False
    ):
""",
            "    @lending.ends_transaction\n",
        ),
        insert_before(
            BASE,
            "    def run_and_clear_commit_hooks(self):\n",
            "    @lending.follows_transaction\n",
        ),
        replace(
            BASE,
            """\
        conn = self.__class__({**self.settings_dict, "NAME": None}, alias=NO_DB_ALIAS)
""",
            """\
        conn = self.__class__(
            {**self.settings_dict, "NAME": None, "POOL": False}, alias=NO_DB_ALIAS
        )
""",
        ),
        insert_after(
            "django/db/utils.py",
            """\
            conn.setdefault("OPTIONS", {})
""",
            """\
            conn.setdefault("POOL", False)
""",
        ),
    ],
)

TEST_DATABASES = Commit(
    subject="Closed pools before cloning and destroying test databases.",
    body="""
        Servers refuse to copy or drop a database that others are connected to,
        as are the pools of all aliases for it.
        """,
    # Releases differ in the name of a warning that is imported nearby.
    context=1,
    changes=[
        insert_after(
            CREATION,
            "from django.db import router\n",
            "from django.db.pool import pools\n",
        ),
        insert_before(
            CREATION,
            """\
        source_database_name = self.connection.settings_dict["NAME"]

        if verbosity >= 1:
            action = "Cloning test database"
""",
            """\
        # Some databases can't be cloned while there are connections to them.
        pools.close_database(self.connection.settings_dict)
""",
        ),
        replace(
            CREATION,
            """\
        if suffix is None:
            test_database_name = self.connection.settings_dict["NAME"]
        else:
            test_database_name = self.get_test_db_clone_settings(suffix)["NAME"]
""",
            """\
        if suffix is None:
            settings_dict = self.connection.settings_dict
        else:
            settings_dict = self.get_test_db_clone_settings(suffix)
        pools.close_database(settings_dict)
        test_database_name = settings_dict["NAME"]
""",
        ),
    ],
)

POSTGRESQL_POOL = Commit(
    subject="Added support for POOL to the PostgreSQL backend.",
    body="""
        libpq tells without a round trip whether a connection is in a
        transaction, and what its socket is, which shows when it's dead. psycopg's
        AsyncConnection works on a connection that a thread has opened.

        When the time zone changes, connections are replaced as they come back,
        rather than taken from their users. OPTIONS["pool"] works as before;
        close_pool() closes whichever pool there is.

        The types of contrib.postgres are registered once for each physical
        connection, because they stay registered.
        """,
    changes=[
        add("django/db/backends/postgresql/loops.py"),
        add("django/db/backends/postgresql/pool.py"),
        insert_after(
            POSTGRESQL,
            "from .operations import DatabaseOperations  # NOQA isort:skip\n",
            "from .pool import DatabaseConnector  # NOQA isort:skip\n",
        ),
        insert_after(
            POSTGRESQL,
            "    ops_class = DatabaseOperations\n",
            "    connector_class = DatabaseConnector\n",
        ),
        insert_after(
            POSTGRESQL,
            "    def close_pool(self):\n",
            "        super().close_pool()\n",
        ),
        replace(
            POSTGRESQL,
            """\
        # Close the pool so new connections pick up the correct timezone.
        self.close_pool()
""",
            """\
        if (connection_pool := self.connection_pool) is not None:
            # Connections are replaced as they become idle.
            connection_pool.drain()
        else:
            # Close the pool so new connections pick up the correct timezone.
            self.close_pool()
""",
        ),
        insert_after(
            POSTGRESQL,
            """\
                            "NAME": connection.settings_dict["NAME"],
""",
            """\
                            "POOL": False,
""",
        ),
        insert_before(
            SIGNALS,
            """\
if is_psycopg3:
    from psycopg.types import TypeInfo, hstore

""",
            """\
def once_per_connection(register):
    \"\"\"
    Have a connection_created receiver skip connections of a pool that it has
    seen, unless an extension brought other types since.
    \"\"\"

    @functools.wraps(register)
    def register_once(connection, **kwargs):
        lease = connection._pool_lease
        if (
            lease is None
            or lease.entry is None
            or connection.vendor != "postgresql"
            or "signal" not in kwargs
        ):
            return register(connection, **kwargs)
        notes = lease.entry.session.notes
        oids = get_hstore_oids(connection.alias), get_citext_oids(connection.alias)
        if notes.get("type_oids") != oids:
            register(connection, **kwargs)
            notes["type_oids"] = oids

    return register_once


""",
        ),
        replace(
            SIGNALS,
            """\
    from psycopg.types import TypeInfo, hstore

    def register_type_handlers(connection, **kwargs):
""",
            """\
    from psycopg.types import TypeInfo, hstore

    @once_per_connection
    def register_type_handlers(connection, **kwargs):
""",
        ),
        replace(
            SIGNALS,
            """\
    from psycopg2.extras import register_hstore

    def register_type_handlers(connection, **kwargs):
""",
            """\
    from psycopg2.extras import register_hstore

    @once_per_connection
    def register_type_handlers(connection, **kwargs):
""",
        ),
    ],
)

# Between statements a wrapper may have no connection.
UNUSABLE_WITHOUT_CONNECTION = """\
        if self.connection is None:
            return False
"""

MYSQL_POOL = Commit(
    subject="Added support for POOL to the MySQL backend.",
    body="""
        What the backend asks a server about itself is asked once for each
        version of the server, rather than for each wrapper. Results that were
        left unread don't get in the way of who borrows the connection next.

        Tasks use mysqlclient's functions for sending a statement and reading
        its result, and have the event loop watch the socket between these.
        """,
    changes=[
        add("django/db/backends/mysql/loops.py"),
        add("django/db/backends/mysql/pool.py"),
        insert_after(
            MYSQL,
            "from .operations import DatabaseOperations\n",
            "from .pool import DatabaseConnector\n",
        ),
        insert_after(
            MYSQL,
            "    validation_class = DatabaseValidation\n",
            "    connector_class = DatabaseConnector\n",
        ),
        insert_after(MYSQL, "    def is_usable(self):\n", UNUSABLE_WITHOUT_CONNECTION),
    ],
)

ORACLE_POOL = Commit(
    subject="Added support for POOL to the Oracle backend.",
    body="""
        python-oracledb tells without a round trip whether a connection is
        healthy, and whether it's in a transaction. OPTIONS["pool"] works as
        before; close_pool() closes whichever pool there is.
        """,
    changes=[
        add("django/db/backends/oracle/pool.py"),
        insert_after(
            ORACLE,
            "from .operations import DatabaseOperations  # NOQA\n",
            "from .pool import DatabaseConnector  # NOQA\n",
        ),
        insert_after(
            ORACLE,
            "    validation_class = DatabaseValidation\n",
            "    connector_class = DatabaseConnector\n",
        ),
        insert_after(ORACLE, "    def is_usable(self):\n", UNUSABLE_WITHOUT_CONNECTION),
        insert_after(
            ORACLE,
            "    def close_pool(self):\n",
            "        super().close_pool()\n",
        ),
    ],
)

SQLITE_POOL = Commit(
    subject="Added support for POOL to the SQLite backend.",
    body="""
        A database in memory is never pooled: it's gone when its last connection
        is closed.
        """,
    changes=[
        add("django/db/backends/sqlite3/pool.py"),
        insert_after(
            SQLITE,
            "from .operations import DatabaseOperations\n",
            "from .pool import DatabaseConnector\n",
        ),
        insert_after(
            SQLITE,
            "    ops_class = DatabaseOperations\n",
            "    connector_class = DatabaseConnector\n",
        ),
    ],
)

CHECKS = Commit(
    subject="Added system checks for POOL.",
    body="""
        One finds out what is wrong with the setting, connecting to nothing. The
        other, a database check, warns when pools may open more connections than
        the server takes.
        """,
    changes=[
        add("django/core/checks/pool.py"),
        insert_after(
            "django/core/checks/__init__.py",
            "import django.core.checks.model_checks  # NOQA isort:skip\n",
            "import django.core.checks.pool  # NOQA isort:skip\n",
        ),
    ],
)

DOCS = Commit(
    subject="Documented connection pools.",
    body="""
        This covers the setting, the checks, the pools' API, and how to move
        over from persistent connections and from OPTIONS["pool"].
        """,
    changes=[*DOCS_FILES, *DOCS_EDITS],
)

OTHER_TESTS = Commit(
    subject="Made tests of other ways to keep connections independent of POOL.",
    body="""
        They are about persistent connections and about OPTIONS["pool"], which
        exclude POOL. Without it they pass whatever settings the tests are run
        with.
        """,
    changes=[
        insert_before(
            "tests/backends/base/test_base.py",
            """\
                "CONN_MAX_AGE": None,
""",
            """\
                "POOL": False,
""",
        ),
        *[
            insert_after(
                "tests/backends/%s/tests.py" % backend,
                """\
    new_connection.settings_dict["OPTIONS"]["pool"] = False
""",
                """\
    new_connection.settings_dict["POOL"] = False
""",
            )
            for backend in ["oracle", "postgresql"]
        ],
        insert_after(
            "tests/servers/tests.py",
            """\
        cls.old_conn_max_age = conn.settings_dict["CONN_MAX_AGE"]
""",
            """\
        cls.old_pool = conn.settings_dict["POOL"]
""",
        ),
        insert_after(
            "tests/servers/tests.py",
            """\
        conn.settings_dict["CONN_MAX_AGE"] = None
""",
            """\
        conn.settings_dict["POOL"] = False
""",
        ),
        insert_after(
            "tests/servers/tests.py",
            """\
        cls.conn.settings_dict["CONN_MAX_AGE"] = cls.old_conn_max_age
""",
            """\
        cls.conn.settings_dict["POOL"] = cls.old_pool
""",
        ),
    ],
)

TESTS = Commit(
    subject="Added tests of connection pools.",
    body="""
        The rules are tested on a fake clock and in random simulations, the pool
        with a driver that does what a test wants, and lending on whatever
        database the tests are run with. In-memory databases have no pool, so
        SQLite needs a TEST NAME for the last of these.
        """,
    changes=add_all("tests/db_pool"),
)

COMMITS = [
    POOL_PACKAGE,
    ASYNC_UNSAFE,
    STATEMENTS,
    WRAPPERS,
    TEST_DATABASES,
    POSTGRESQL_POOL,
    MYSQL_POOL,
    ORACLE_POOL,
    SQLITE_POOL,
    CHECKS,
    DOCS,
    OTHER_TESTS,
    TESTS,
]
