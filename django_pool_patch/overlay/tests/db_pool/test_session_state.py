import unittest
from contextlib import ExitStack, contextmanager

from django.db import (
    DEFAULT_DB_ALIAS,
    DatabaseError,
    connection,
    connections,
    transaction,
)
from django.db.backends.base.statements import (
    ADVISORY_LOCK,
    BLOCK,
    LISTENING,
    OPEN_CURSOR,
    PREPARED,
    SETTING,
    TABLE_LOCK,
    TEMPORARY,
    TRANSACTION,
    VARIABLE,
)
from django.db.models import Count, F, Max

from .models import Item
from .test_transaction_mode import TransactionModeTestCase

if connection.vendor == "postgresql":
    from django.db.backends.postgresql.psycopg_any import sql

MODES = ("session", "transaction")

# What a probe comes to that the database refuses.
ERROR = object()

INSERT = "INSERT INTO db_pool_item (name) VALUES ('db_pool')"
INSERTED = "SELECT COUNT(*) FROM db_pool_item WHERE name = 'db_pool'"


class Row:
    """
    Statements that touch the session, and what is seen of it.

    * statements: what is executed, or called with a cursor.
    * reason: why the connection is pinned.
    * probe: a query, or what is called with a wrapper.
    * seen: what the probe tells whoever ran the statements. Others are told
      what it told before.
    * changes: of the settings.
    * is_lasting: whether that is also seen the second time.
    * in_atomic: whether it's seen in an atomic block.
    """

    def __init__(
        self,
        statements,
        reason,
        probe,
        seen,
        *,
        changes=None,
        is_lasting=True,
        in_atomic=True,
    ):
        self.statements = statements if isinstance(statements, list) else [statements]
        self.reason = reason
        self.probe = probe
        self.seen = seen
        self.changes = changes
        self.is_lasting = is_lasting
        self.in_atomic = in_atomic and is_lasting


class SessionStateTestCase(TransactionModeTestCase):
    def look(self, wrapper, probe):
        """Return what a probe tells."""
        try:
            if callable(probe):
                return probe(wrapper)
            with wrapper.cursor() as cursor:
                cursor.execute(probe)
                row = cursor.fetchone()
        except DatabaseError:
            return ERROR
        return row[0] if row else None

    def use_pool(self, wrappers):
        for wrapper in wrappers:
            self.select(wrapper)
            with self.atomic(wrapper):
                self.select(wrapper)

    def check_row(self, row, mode):
        def make_wrapper():
            return self.make_wrapper(row.changes, mode=mode)

        owner = make_wrapper()
        # The rows that follow mustn't notice if this one fails.
        with ExitStack() as stack:
            stack.callback(owner.close_pool)
            stack.callback(owner.close)
            before = make_wrapper()
            initial = self.look(before, row.probe)
            before.close()
            self.assertNotEqual(initial, row.seen)
            self.check_owner(row, mode, owner, [make_wrapper(), make_wrapper()])
            owner.close()
            self.assertIsNone(owner.pin_reason)
            self.check_next(row, initial, [make_wrapper(), make_wrapper()])
            self.assertEqual(self.look(owner, row.probe), initial)

    def check_owner(self, row, mode, owner, others):
        """The owner keeps what was done to the session."""
        for statement in row.statements:
            with owner.cursor() as cursor:
                if callable(statement):
                    statement(cursor)
                else:
                    cursor.execute(statement)
            if mode == "transaction":
                self.use_pool(others)
        self.assertEqual(owner.pin_reason, row.reason)
        # Whatever else the owner could get is in use.
        with others[0].cursor():
            self.assertEqual(self.look(owner, row.probe), row.seen)
            if row.in_atomic:
                with self.atomic(owner):
                    self.assertEqual(self.look(owner, row.probe), row.seen)
            if row.is_lasting:
                self.assertEqual(self.look(owner, row.probe), row.seen)
        others[0].close()
        self.assertEqual(owner.connection_pool.stats().in_use, 1)

    def check_next(self, row, initial, wrappers):
        """Whoever is next, on any of the pool's connections, is not told."""
        with ExitStack() as stack:
            for wrapper in wrappers:
                stack.callback(wrapper.close)
                stack.enter_context(wrapper.cursor())
            self.assertEqual(wrapper.connection_pool.stats().in_use, 2)
            for wrapper in wrappers:
                self.assertEqual(self.look(wrapper, row.probe), initial)

    def check_rows(self, rows):
        for row in rows:
            for mode in MODES:
                with self.subTest(row.statements, mode=mode):
                    self.check_row(row, mode)


def setting(name):
    # A custom setting that was reset is empty, while it's null before.
    return "SELECT COALESCE(current_setting('%s', true), '')" % name


WORK_MEM = setting("work_mem")
CUSTOM = setting("db_pool.custom")
ADVISORY_LOCKS = """
    SELECT COUNT(*) FROM pg_locks
    WHERE locktype = 'advisory' AND database = (
        SELECT oid FROM pg_database WHERE datname = current_database()
    )
"""
RELATION = "SELECT to_regclass('db_pool_temp') IS NOT NULL"
ROLE = {"OPTIONS": {"assume_role": "pg_monitor"}}
OTHER_ROLE = "SELECT current_user <> 'pg_monitor'"


@unittest.skipUnless(connection.vendor == "postgresql", "PostgreSQL's statements.")
class PostgreSQLSessionStateTests(SessionStateTestCase):
    def test_settings(self):
        self.check_rows(
            [
                Row("SET work_mem = '123kB'", SETTING, WORK_MEM, "123kB"),
                Row('SET"work_mem"TO"123kB"', SETTING, WORK_MEM, "123kB"),
                Row(b"SET work_mem = '123kB'", SETTING, WORK_MEM, "123kB"),
                Row(
                    sql.SQL("SET {} = {}").format(
                        sql.Identifier("work_mem"), sql.Literal("123kB")
                    ),
                    SETTING,
                    WORK_MEM,
                    "123kB",
                ),
                Row(
                    "/* it's /* in */ */ set --\n work_mem to '123kB'",
                    SETTING,
                    WORK_MEM,
                    "123kB",
                ),
                Row("SELECT 1; SET work_mem = '123kB'", SETTING, WORK_MEM, "123kB"),
                Row(
                    "SET SESSION statement_timeout = 12345",
                    SETTING,
                    setting("statement_timeout"),
                    "12345ms",
                ),
                Row(
                    "SET TIME ZONE 'Asia/Kathmandu'",
                    SETTING,
                    setting("TimeZone"),
                    "Asia/Kathmandu",
                ),
                Row(
                    "SET search_path TO pg_catalog",
                    SETTING,
                    setting("search_path"),
                    "pg_catalog",
                ),
                Row(
                    "SET NAMES 'LATIN1'", SETTING, setting("client_encoding"), "LATIN1"
                ),
                Row(
                    "SET XML OPTION DOCUMENT", SETTING, setting("xmloption"), "document"
                ),
                Row(
                    "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
                    SETTING,
                    setting("transaction_read_only"),
                    "on",
                ),
                Row("SET db_pool.custom = 'x'", SETTING, CUSTOM, "x"),
                Row(
                    "SELECT set_config('db_pool.custom', 'x', false)",
                    SETTING,
                    CUSTOM,
                    "x",
                ),
                Row(
                    "SELECT\"set_config\"('db_pool.custom', 'x', false)",
                    SETTING,
                    CUSTOM,
                    "x",
                ),
                Row(
                    "WITH t AS (SELECT set_config('db_pool.custom', 'x', false)) "
                    "SELECT * FROM t",
                    SETTING,
                    CUSTOM,
                    "x",
                ),
            ]
        )

    def test_privileged_settings(self):
        if not self.select(connection, "SELECT current_setting('is_superuser') = 'on'"):
            self.skipTest("The user isn't a superuser.")
        self.check_rows(
            [
                Row(
                    "SET ROLE pg_monitor", SETTING, "SELECT current_user", "pg_monitor"
                ),
                Row(
                    "SET SESSION AUTHORIZATION pg_monitor",
                    SETTING,
                    "SELECT session_user",
                    "pg_monitor",
                ),
                # It's a library's, which stays loaded.
                Row(
                    ["LOAD 'auto_explain'", "SET auto_explain.log_min_duration = 5"],
                    SETTING,
                    "SELECT current_setting('auto_explain.log_min_duration', true) "
                    "= '5ms' IS TRUE",
                    True,
                ),
                Row("RESET ROLE", SETTING, OTHER_ROLE, True, changes=ROLE),
                Row(
                    "RESET ALL; SET ROLE NONE", SETTING, OTHER_ROLE, True, changes=ROLE
                ),
                Row("DISCARD ALL", SETTING, OTHER_ROLE, True, changes=ROLE),
            ]
        )

    def test_advisory_locks(self):
        self.check_rows(
            [
                Row(statement, ADVISORY_LOCK, ADVISORY_LOCKS, 1)
                for statement in [
                    "SELECT pg_advisory_lock(1)",
                    "SELECT pg_advisory_lock(1, 2)",
                    "SELECT pg_advisory_lock_shared(1)",
                    "SELECT pg_try_advisory_lock(1)",
                    "SELECT pg_try_advisory_lock(1, 2)",
                    "SELECT pg_try_advisory_lock_shared(1)",
                    'SELECT"pg_catalog"."pg_advisory_lock"(1)',
                    "(SELECT 1) UNION ALL (SELECT 2 FROM pg_advisory_lock(1))",
                    lambda cursor: cursor.callproc("pg_advisory_lock", [1]),
                ]
            ]
        )

    def test_temporary(self):
        self.check_rows(
            [
                *[
                    Row(statement, TEMPORARY, RELATION, True)
                    for statement in [
                        "CREATE TEMP TABLE db_pool_temp (a integer)",
                        "CREATE TEMPORARY TABLE db_pool_temp AS SELECT 1 AS a",
                        "create local temp table db_pool_temp () "
                        "on commit preserve rows",
                        "SELECT 1 AS a INTO TEMP db_pool_temp",
                        "(SELECT 1 AS a INTO TEMPORARY TABLE db_pool_temp)",
                        "WITH t AS (SELECT 1 AS a) SELECT * INTO TEMP"
                        '"db_pool_temp"FROM t',
                        "EXPLAIN ANALYZE CREATE TEMP TABLE db_pool_temp AS SELECT 1",
                        "CREATE TEMP VIEW db_pool_temp AS SELECT 1 AS a",
                        "CREATE TEMP SEQUENCE db_pool_temp",
                        "CREATE TABLE pg_temp.db_pool_temp (a integer)",
                        'CREATE TABLE "pg_temp"."db_pool_temp" (a integer)',
                    ]
                ],
                Row(
                    "CREATE FUNCTION pg_temp.db_pool_temp() RETURNS integer "
                    "AS $$ SELECT 1 $$ LANGUAGE sql",
                    TEMPORARY,
                    "SELECT to_regprocedure('pg_temp.db_pool_temp()') IS NOT NULL",
                    True,
                ),
            ]
        )

    def test_others(self):
        self.check_rows(
            [
                Row(
                    "LISTEN db_pool",
                    LISTENING,
                    "SELECT COUNT(*) FROM pg_listening_channels()",
                    1,
                ),
                Row(
                    "PREPARE db_pool (integer) AS SELECT $1",
                    PREPARED,
                    "SELECT COUNT(*) FROM pg_prepared_statements "
                    "WHERE name = 'db_pool'",
                    1,
                ),
                Row(
                    "DECLARE db_pool CURSOR WITH HOLD FOR SELECT 1",
                    OPEN_CURSOR,
                    "SELECT COUNT(*) FROM pg_cursors WHERE name = 'db_pool'",
                    1,
                ),
                Row(
                    "DO $$ BEGIN PERFORM set_config('db_pool.custom', 'x', false); "
                    "END $$",
                    BLOCK,
                    CUSTOM,
                    "x",
                ),
                Row(
                    "DO LANGUAGE plpgsql 'BEGIN SET db_pool.custom = x; END'",
                    BLOCK,
                    CUSTOM,
                    "x",
                ),
                Row(
                    ["BEGIN", INSERT],
                    TRANSACTION,
                    INSERTED,
                    1,
                    in_atomic=False,
                ),
                Row(
                    ["START TRANSACTION", "SET LOCAL work_mem = '123kB'"],
                    TRANSACTION,
                    WORK_MEM,
                    "123kB",
                    in_atomic=False,
                ),
            ]
        )

    def test_seed(self):
        """The seed for random numbers is the owner's while it's in use."""
        owner, other = self.make_wrapper(), self.make_wrapper()
        numbers = []
        for _ in range(2):
            self.select(owner, "SELECT setseed(0.5)")
            self.assertEqual(owner.pin_reason, SETTING)
            numbers.append(self.select(owner, "SELECT random()"))
            self.select(other, "SELECT random()")
            numbers.append(self.select(owner, "SELECT random()"))
        self.assertEqual(numbers[:2], numbers[2:])

    def test_what_a_transaction_ends(self):
        for statement in [
            "SET LOCAL work_mem = '123kB'",
            "SELECT set_config('work_mem', '123kB', true)",
            "SELECT pg_advisory_xact_lock(1)",
            "SET TRANSACTION READ ONLY",
            "SET CONSTRAINTS ALL DEFERRED",
            "CREATE TEMP TABLE db_pool_temp (a integer) ON COMMIT DROP",
            "DECLARE db_pool CURSOR FOR SELECT 1",
            "LOCK TABLE db_pool_item",
        ]:
            with self.subTest(statement):
                wrapper = self.make_wrapper(max_size=1)
                with self.atomic(wrapper):
                    with wrapper.cursor() as cursor:
                        cursor.execute(statement)
                    self.assertIsNone(wrapper.pin_reason)
                self.assertIdle(wrapper)
                self.assertNotEqual(self.look(wrapper, WORK_MEM), "123kB")
                self.assertEqual(self.look(wrapper, ADVISORY_LOCKS), 0)
                self.assertIs(self.look(wrapper, RELATION), False)
        self.assertEqual(wrapper.connection_pool.stats().pins, ())


VARIABLE_SET = "SELECT @db_pool"
SORT_BUFFER = "SELECT @@sort_buffer_size"
TEMPORARY_TABLE = "SELECT COUNT(*) FROM db_pool_temp"


def take_lock(wrapper):
    """
    Return whether a lock may be had. The server needs a moment to release
    those of a connection that was closed.
    """
    with wrapper.cursor() as cursor:
        cursor.execute("SELECT IS_USED_LOCK('db_pool') = CONNECTION_ID()")
        if cursor.fetchone()[0]:
            return "owned"
        cursor.execute("SELECT GET_LOCK('db_pool', 5)")
        is_taken = bool(cursor.fetchone()[0])
        cursor.execute("SELECT RELEASE_LOCK('db_pool')")
        cursor.fetchall()
    return is_taken


@unittest.skipUnless(connection.vendor == "mysql", "MySQL's statements.")
class MySQLSessionStateTests(SessionStateTestCase):
    @contextmanager
    def created(self, create, drop):
        with connection.cursor() as cursor:
            cursor.execute(create)
        try:
            yield
        finally:
            with connection.cursor() as cursor:
                cursor.execute(drop)

    def test_variables(self):
        rows = [
            Row(statement, VARIABLE, VARIABLE_SET, 5)
            for statement in [
                "SET @db_pool = 5",
                "SET@db_pool=5",
                "set @'db_pool' := 5",
                "SELECT @db_pool := 5",
                "SELECT@db_pool:=5",
                "SELECT 5 INTO @db_pool",
                "/*!40000 SET @db_pool = 5 */",
                "--\nSET @db_pool = 5",
                "# it's\nSET @db_pool = 5",
                b"SET @db_pool = 5",
                "SELECT 1; SET @db_pool = 5",
                "SET autocommit = @@autocommit, @db_pool = 5",
            ]
        ]
        if connection.mysql_is_mariadb:
            rows += [
                Row(
                    "BEGIN NOT ATOMIC SET @db_pool = 5; END", VARIABLE, VARIABLE_SET, 5
                ),
                Row("EXECUTE IMMEDIATE 'SET @db_pool = 5'", PREPARED, VARIABLE_SET, 5),
            ]
        self.check_rows(rows)

    def test_arguments_of_a_procedure(self):
        """mysqlclient passes them by user variables."""
        with self.created(
            "CREATE PROCEDURE db_pool_procedure (IN a integer) BEGIN END",
            "DROP PROCEDURE db_pool_procedure",
        ):
            self.check_rows(
                [
                    Row(
                        lambda cursor: cursor.callproc("db_pool_procedure", [5]),
                        VARIABLE,
                        "SELECT @_db_pool_procedure_0",
                        5,
                    )
                ]
            )

    def test_settings(self):
        if connection.mysql_is_mariadb:
            isolation_level, read_only = "@@tx_isolation", "@@tx_read_only"
        else:
            isolation_level, read_only = (
                "@@transaction_isolation",
                "@@transaction_read_only",
            )
        self.check_rows(
            [
                *[
                    Row(statement, SETTING, SORT_BUFFER, 65536)
                    for statement in [
                        "SET SESSION sort_buffer_size = 65536",
                        "SET LOCAL sort_buffer_size = 65536",
                        "SET @@session.sort_buffer_size = 65536",
                        "SET@@sort_buffer_size=65536",
                        "set/**/`sort_buffer_size`=65536",
                        "SET`sort_buffer_size`=65536",
                    ]
                ],
                Row(
                    "SET sql_mode = 'ANSI_QUOTES'",
                    SETTING,
                    "SELECT @@sql_mode",
                    "ANSI_QUOTES",
                ),
                Row(
                    "SET time_zone = '+05:45'",
                    SETTING,
                    "SELECT @@time_zone",
                    "+05:45",
                ),
                Row(
                    "SET NAMES latin1",
                    SETTING,
                    "SELECT @@character_set_client",
                    "latin1",
                ),
                Row(
                    "SET CHARACTER SET latin1",
                    SETTING,
                    "SELECT @@character_set_client",
                    "latin1",
                ),
                Row(
                    "SET SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE",
                    SETTING,
                    "SELECT %s" % isolation_level,
                    "SERIALIZABLE",
                ),
                Row(
                    "SET SESSION TRANSACTION READ ONLY",
                    SETTING,
                    "SELECT %s" % read_only,
                    1,
                ),
                Row(
                    "SET autocommit = 0",
                    SETTING,
                    "SELECT @@autocommit",
                    0,
                    in_atomic=False,
                ),
                Row(
                    "SET foreign_key_checks = 0",
                    SETTING,
                    "SELECT @@foreign_key_checks",
                    0,
                ),
                Row("SET unique_checks = 0", SETTING, "SELECT @@unique_checks", 0),
                Row(
                    "SET timestamp = 1000",
                    SETTING,
                    "SELECT UNIX_TIMESTAMP() = 1000",
                    1,
                ),
                Row("SELECT LAST_INSERT_ID(5)", SETTING, "SELECT LAST_INSERT_ID()", 5),
                Row(
                    "SELECT `last_insert_id`(5)",
                    SETTING,
                    "SELECT LAST_INSERT_ID()",
                    5,
                ),
                Row(
                    "USE information_schema",
                    SETTING,
                    "SELECT DATABASE()",
                    "information_schema",
                ),
                Row(
                    "SELECT SQL_CALC_FOUND_ROWS 1 UNION SELECT 2 LIMIT 1",
                    SETTING,
                    "SELECT FOUND_ROWS() = 2",
                    1,
                    is_lasting=False,
                ),
            ]
        )

    def test_role(self):
        with self.created("CREATE ROLE db_pool_role", "DROP ROLE db_pool_role"):
            if not connection.mysql_is_mariadb:
                with connection.cursor() as cursor:
                    cursor.execute("GRANT db_pool_role TO CURRENT_USER()")
            self.check_rows(
                [
                    Row(
                        "SET ROLE db_pool_role",
                        SETTING,
                        "SELECT CURRENT_ROLE() LIKE '%%db_pool_role%%' IS TRUE",
                        1,
                    ),
                ]
            )

    def test_next_transaction(self):
        """SET TRANSACTION is about the next, which is the owner's."""
        for mode in MODES:
            with self.subTest(mode=mode):
                owner, other, following = (
                    self.make_wrapper(mode=mode, max_size=2) for _ in range(3)
                )
                for is_used in (True, False):
                    with owner.cursor() as cursor:
                        cursor.execute("SET TRANSACTION READ ONLY")
                    self.assertEqual(owner.pin_reason, SETTING)
                    with other.cursor() as cursor:
                        cursor.execute(INSERT)
                        if is_used:
                            self.assertIs(self.look(owner, INSERT), ERROR)
                    other.close()
                    owner.close()
                    with following.cursor() as first, other.cursor() as second:
                        first.execute(INSERT)
                        second.execute(INSERT)
                    following.close()
                    other.close()

    def test_locks(self):
        self.check_rows(
            [
                *[
                    Row(statement, ADVISORY_LOCK, take_lock, "owned")
                    for statement in [
                        "SELECT GET_LOCK('db_pool', 1)",
                        "select `get_lock` ('db_pool', 1)",
                        "DO GET_LOCK('db_pool', 1)",
                        "(SELECT 1) UNION (SELECT GET_LOCK('db_pool', 1))",
                    ]
                ],
                *[
                    Row(
                        statement,
                        TABLE_LOCK,
                        # Other tables can't be used.
                        "SELECT COUNT(*) FROM django_content_type",
                        ERROR,
                        # A transaction would be the end of it.
                        in_atomic=False,
                    )
                    for statement in [
                        "LOCK TABLES db_pool_item WRITE",
                        "LOCK TABLE db_pool_item READ",
                    ]
                ],
            ]
        )

    def test_temporary(self):
        statements = [
            "CREATE TEMPORARY TABLE db_pool_temp (a integer)",
            "CREATE TEMPORARY TABLE db_pool_temp SELECT 1 AS a LIMIT 0",
            "create temporary table if not exists db_pool_temp like db_pool_item",
            "CREATE /*!40000 TEMPORARY */ TABLE `db_pool_temp` (a integer)",
        ]
        if connection.mysql_is_mariadb:
            statements += [
                "CREATE OR REPLACE TEMPORARY TABLE db_pool_temp (a integer)",
                "SET STATEMENT max_statement_time = 5 FOR "
                "CREATE TEMPORARY TABLE db_pool_temp (a integer)",
            ]
        self.check_rows(
            [Row(statement, TEMPORARY, TEMPORARY_TABLE, 0) for statement in statements]
        )

    def test_others(self):
        rows = [
            Row("PREPARE db_pool FROM 'SELECT 5'", PREPARED, "EXECUTE db_pool", 5),
            Row(
                "HANDLER db_pool_item OPEN",
                OPEN_CURSOR,
                "HANDLER db_pool_item READ FIRST",
                None,
            ),
            *[
                Row([begin, INSERT], TRANSACTION, INSERTED, 1, in_atomic=False)
                for begin in [
                    "START TRANSACTION",
                    "BEGIN",
                    "/*!40000 begin */",
                    "XA START 'db_pool'",
                ]
            ],
        ]
        if connection.mysql_is_mariadb:
            rows.append(
                Row(
                    "BEGIN NOT ATOMIC SET sort_buffer_size = 65536; END",
                    BLOCK,
                    SORT_BUFFER,
                    65536,
                )
            )
        self.check_rows(rows)

    def test_what_touches_nothing(self):
        statements = [
            "SELECT @@session.sql_mode",
            "SELECT LAST_INSERT_ID()",
            "SELECT 'a@example.com'",
            "SELECT RELEASE_LOCK('db_pool')",
        ]
        if connection.mysql_is_mariadb:
            statements += [
                "SET STATEMENT sort_buffer_size = 65536 FOR SELECT 1",
                "SHOW GRANTS FOR CURRENT_USER",
            ]
        for statement in statements:
            with self.subTest(statement):
                wrapper = self.make_wrapper(max_size=1)
                self.assertIsNot(self.look(wrapper, statement), ERROR)
                self.assertIdle(wrapper)
                self.assertNotEqual(self.look(wrapper, SORT_BUFFER), 65536)
        self.assertEqual(wrapper.connection_pool.stats().pins, ())


def attached(name):
    return "SELECT COUNT(*) FROM pragma_database_list WHERE name = '%s'" % name


TEMPORARY_OBJECT = "SELECT COUNT(*) FROM sqlite_temp_master WHERE name = 'db_pool_temp'"
ATTACHED = {"OPTIONS": {"init_command": "ATTACH ':memory:' AS db_pool_other"}}


@unittest.skipUnless(connection.vendor == "sqlite", "SQLite's statements.")
class SQLiteSessionStateTests(SessionStateTestCase):
    def test_pragmas(self):
        self.check_rows(
            [
                *[
                    Row(
                        "PRAGMA %s = %d" % (name, value),
                        SETTING,
                        "PRAGMA %s" % name,
                        value,
                    )
                    for name, value in [
                        ("foreign_keys", 0),
                        ("cache_size", 1234),
                        ("recursive_triggers", 1),
                        ("read_uncommitted", 1),
                        ("query_only", 1),
                        ("synchronous", 0),
                        ("temp_store", 2),
                        ("busy_timeout", 1234),
                        ("ignore_check_constraints", 1),
                        ("automatic_index", 0),
                        ("cell_size_check", 1),
                        ("legacy_alter_table", 1),
                    ]
                ],
                Row(
                    "PRAGMA case_sensitive_like = ON",
                    SETTING,
                    "SELECT 'a' LIKE 'A'",
                    0,
                ),
                *[
                    Row(statement, SETTING, "PRAGMA foreign_keys", 0)
                    for statement in [
                        "pragma foreign_keys(off)",
                        "/* it's */ PRAGMA\nmain . foreign_keys=0;",
                        "EXPLAIN PRAGMA foreign_keys = 0",
                    ]
                ],
            ]
        )

    def test_attached(self):
        self.check_rows(
            [
                Row(
                    "ATTACH DATABASE ':memory:' AS db_pool_other",
                    SETTING,
                    attached("db_pool_other"),
                    1,
                ),
                Row(
                    "DETACH db_pool_other",
                    SETTING,
                    attached("db_pool_other"),
                    0,
                    changes=ATTACHED,
                ),
            ]
        )

    def test_temporary(self):
        self.check_rows(
            [
                Row(statement, TEMPORARY, TEMPORARY_OBJECT, 1)
                for statement in [
                    "CREATE TEMP TABLE db_pool_temp (a integer)",
                    "create temporary table if not exists db_pool_temp as select 1",
                    "CREATE TEMP VIEW db_pool_temp AS SELECT 1",
                    "CREATE TEMP TRIGGER db_pool_temp AFTER INSERT ON db_pool_item "
                    "BEGIN SELECT 1; END",
                    "CREATE TABLE temp.db_pool_temp (a integer)",
                    'CREATE TABLE"temp"."db_pool_temp"(a integer)',
                    "CREATE VIEW [temp].db_pool_temp AS SELECT 1",
                ]
            ]
        )

    def test_transactions(self):
        self.check_rows(
            [
                Row([begin, INSERT], TRANSACTION, INSERTED, 1, in_atomic=False)
                for begin in ["BEGIN", "begin immediate", "SAVEPOINT db_pool"]
            ]
        )


class PlainTrafficTests(TransactionModeTestCase):
    """What the ORM does touches no session."""

    @contextmanager
    def as_default(self, wrapper):
        default = connections[DEFAULT_DB_ALIAS]
        connections[DEFAULT_DB_ALIAS] = wrapper
        try:
            yield
        finally:
            connections[DEFAULT_DB_ALIAS] = default

    def create(self):
        Item.objects.create(name="one")
        Item(name="two").save()
        Item.objects.get_or_create(name="three")
        Item.objects.get_or_create(name="three")
        Item.objects.update_or_create(name="three", defaults={"name": "four"})

    def bulk_create(self):
        Item.objects.bulk_create([Item(name="many") for _ in range(30)], 10)
        if connection.features.supports_ignore_conflicts:
            Item.objects.bulk_create([Item(name="x")], ignore_conflicts=True)
        if connection.features.supports_update_conflicts:
            fields = {"update_fields": ["name"]}
            if connection.features.supports_update_conflicts_with_target:
                fields["unique_fields"] = ["id"]
            item = Item.objects.create(name="x")
            Item.objects.bulk_create([item], update_conflicts=True, **fields)

    def read(self):
        items = Item.objects.filter(name__contains="e").exclude(name="@set;")
        self.assertEqual(len(items), items.count())
        self.assertIs(items.exists(), True)
        items.order_by("-name").first()
        list(items.values_list("name", flat=True).distinct())
        list(items.values("name").annotate(number=Count("id")).filter(number__gt=1))
        items.aggregate(Max("name"))
        Item.objects.in_bulk()
        list(items.filter(pk__in=Item.objects.values("pk")))
        list(Item.objects.raw("SELECT id, name FROM db_pool_item"))
        list(items.iterator(chunk_size=1))
        if connection.vendor != "oracle":
            items.explain()

    def combine(self):
        items = Item.objects.all()
        list(items.filter(name="one").union(items.filter(name="two"), all=True))
        if connection.features.supports_slicing_ordering_in_compound:
            list(items[:1].union(items[1:2]).order_by("name"))

    def change(self):
        item = Item.objects.create(name="begin")
        item.name = "changed"
        item.save()
        item.refresh_from_db()
        Item.objects.filter(name="changed").update(name=F("name"))
        Item.objects.bulk_update([item], ["name"])
        item.delete()
        Item.objects.filter(name="many").delete()

    def lock(self):
        with transaction.atomic():
            list(Item.objects.select_for_update())

    def transact(self):
        with transaction.atomic():
            Item.objects.create(name="kept")
            with transaction.atomic():
                Item.objects.create(name="kept")
            with self.assertRaises(ZeroDivisionError), transaction.atomic():
                Item.objects.create(name="lost")
                1 / 0
        with self.assertRaises(ZeroDivisionError), transaction.atomic():
            Item.objects.create(name="lost")
            1 / 0

    def test_plain_traffic(self):
        for mode in MODES:
            wrapper = self.make_wrapper(mode=mode)
            for operation in [
                self.create,
                self.bulk_create,
                self.read,
                self.combine,
                self.change,
                self.lock,
                self.transact,
            ]:
                with (
                    self.subTest(operation.__name__, mode=mode),
                    self.as_default(wrapper),
                ):
                    operation()
                    self.assertIsNone(wrapper.pin_reason)
                    self.assertEqual(wrapper.connection_pool.stats().pins, ())
                    if mode == "transaction":
                        self.assertIdle(wrapper)
            self.assertGreater(wrapper.connection_pool.stats().acquired, 0)
            wrapper.close()
