import random
import unittest

from django.db.backends.base import statements as base
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
    UNKNOWN,
    VARIABLE,
)
from django.db.backends.mysql import statements as mysql
from django.db.backends.oracle import statements as oracle
from django.db.backends.postgresql import statements as postgresql
from django.db.backends.sqlite3 import statements as sqlite3
from django.test import SimpleTestCase
from django.utils.safestring import SafeString

try:
    from psycopg import sql as psycopg_sql
except ImportError:
    psycopg_sql = None

# What nobody writes, but for making a regular expression work hard.
HOSTILE = [
    "'",
    '"',
    "`",
    "[",
    "(",
    "()",
    "$",
    "$a$b",
    "/*",
    "/*!",
    "/**/",
    "--",
    "#",
    ";",
    " ",
    "@",
    "\\'",
    "E'\\'",
    "q'[",
    "set_config(",
    "into temp.",
    "create ",
    " for ",
    "a,",
    "a b ",
]

# Parts of statements, in any order.
PARTS = [
    *HOSTILE,
    "set_config('a', 'b', false)",
    "set_config('a', 'b', true)",
    '"set_config"(',
    "setseed(0)",
    "set_limit(0)",
    "pg_advisory_lock(1)",
    "pg_advisory_xact_lock(1)",
    "dblink_connect('a')",
    "pg_temp.x",
    '"pg_temp"',
    " into temp x",
    " into ",
    " create temp table ",
    "temporary",
    "get_lock('a', 1)",
    "release_lock('a')",
    "last_insert_id()",
    "last_insert_id(1)",
    "`get_lock`(",
    " sql_calc_found_rows ",
    " @x ",
    "@@x",
    "dbms_lock.request()",
    "dbms_session.set_role('x')",
    "dbms_output.enable()",
    "load_extension('a')",
    "temp.x",
    " set x = 1",
    "'a'",
    '"a"',
    "$$a$$",
    "*/",
    "-- ",
    "\n",
    "union all ",
    "%s",
]


class RecognitionTests:
    """
    What is said about statements of one backend.

    * plain: those that are known to touch nothing at first sight.
    * harmless: those that touch nothing.
    * touching: those that do, by reasons.
    """

    def variants(self, sql):
        """Return other ways to say the same."""
        yield sql
        yield sql.lower()
        yield sql.title()
        yield "\n\t " + sql + " \n"
        yield "/* who; 'it' was */ " + sql
        yield "-- who; it was\n" + sql
        yield "--\n" + sql
        yield sql + " /*controller='index',traceparent='00-5b;SET',db='a'*/"
        yield sql + ";"
        yield sql + " ; "
        if not any(mark in sql for mark in ("--", "#", "/*")):
            yield "  \r\n\t ".join(sql.split(" "))
            yield "/**/ /**/".join(sql.split(" "))

    def assertTouch(self, sql, reason):
        for variant in self.variants(sql):
            with self.subTest(variant):
                self.assertEqual(self.statements.find_touch(variant), reason)
                if reason is not None:
                    self.assertIs(self.statements.is_plain(variant), False)

    def test_plain(self):
        for sql in self.plain:
            with self.subTest(sql):
                self.assertIs(self.statements.is_plain(sql), True)
                self.assertIs(self.statements.is_plain(sql.lower()), True)
            self.assertTouch(sql, None)

    def test_harmless(self):
        for sql in self.harmless:
            self.assertTouch(sql, None)

    def test_touching(self):
        for reason, touching in self.touching.items():
            for sql in touching:
                self.assertTouch(sql, reason)

    def test_plain_is_of_text(self):
        """What else may be executed isn't plain, but of the same kind."""
        for sql in self.plain:
            for other in (sql.encode(), bytearray(sql.encode()), SafeString(sql)):
                with self.subTest(other=other):
                    self.assertIs(self.statements.is_plain(other), False)
                    self.assertIsNone(self.statements.find_touch(other))

    def test_bytes(self):
        for reason, touching in self.touching.items():
            for sql in touching:
                for other in (sql.encode(), bytearray(sql.encode())):
                    with self.subTest(other=other):
                        self.assertEqual(self.statements.find_touch(other), reason)
        self.assertIsNone(self.statements.find_touch(b"SELECT '\xff'"))

    def test_several_statements(self):
        first = self.plain[0]
        for reason, touching in self.touching.items():
            for sql in touching:
                for several in (
                    "%s; %s" % (first, sql),
                    "%s;%s;" % (first.lower(), sql),
                    "%s; %s; %s" % (first, first, sql),
                    "%s\n; /* ; */ (\n%s" % (first, sql),
                ):
                    with self.subTest(several):
                        self.assertEqual(self.statements.find_touch(several), reason)
                        self.assertIs(self.statements.is_plain(several), False)

    def test_nothing(self):
        for sql in ("", " \n", ";", ";;", "/* nothing */", "-- nothing", "("):
            with self.subTest(sql):
                self.assertIsNone(self.statements.find_touch(sql))

    def test_plain_touches_nothing(self):
        examples = [*self.plain, *self.harmless, *sum(self.touching.values(), [])]
        starts = [
            "SELECT ",
            "select a from b where ",
            "(SELECT ",
            "INSERT INTO a ",
            "UPDATE a SET b = ",
            "DELETE FROM a ",
            "REPLACE INTO a ",
            "MERGE INTO a ",
            "SAVEPOINT ",
            "RELEASE SAVEPOINT ",
        ]
        rng = random.Random(0)
        for _ in range(3000):
            parts = [rng.choice(PARTS) for _ in range(rng.randint(1, 6))]
            glue = rng.choice(["", " ", "\n"])
            examples.append(rng.choice(starts) + glue.join(parts))
        found = {True: 0, False: 0}
        for example in examples:
            for sql in (example, example.lower(), "SELECT 1 " + example):
                is_plain = self.statements.is_plain(sql)
                found[is_plain] += 1
                if is_plain:
                    self.assertIsNone(self.statements.find_touch(sql), sql)
        # There were many of both.
        self.assertGreater(min(found.values()), 1000)

    def test_hostile(self):
        """
        Recognition takes a time proportional to a statement's length. If it
        didn't, this wouldn't end within anybody's patience.
        """
        for part in HOSTILE:
            with self.subTest(part):
                sql = "SELECT 1 " + part * (200_000 // len(part))
                self.statements.is_plain(sql)
                self.statements.find_touch(sql)
        tags = "".join("$a%d$ " % number for number in range(20_000))
        self.statements.find_touch("SELECT " + tags)

    def test_transaction_is_the_least_of_reasons(self):
        for reason, touching in self.touching.items():
            if reason == TRANSACTION:
                continue
            for begin in self.touching.get(TRANSACTION, []):
                sql = "%s; %s" % (begin, touching[0])
                with self.subTest(sql):
                    self.assertEqual(self.statements.find_touch(sql), reason)


# What Django's ORM says to any database.
ORM = [
    'SELECT "t"."id", "t"."set" FROM "t" WHERE "t"."name" = %s LIMIT 21',
    "SELECT COUNT(*) AS a FROM email_template WHERE temp > %s",
    "SELECT CASE WHEN (a = %(b)s) THEN 1 ELSE NULL END FROM t ORDER BY x",
    "SELECT id FROM t WHERE name IN ('set x = 1', 'BEGIN', 'LISTEN', 'DO')",
    "INSERT INTO t (name, temporary) VALUES (%s, %s), (%s, %s)",
    "INSERT INTO email_template (a) VALUES (%s) RETURNING id",
    "INSERT INTO template SELECT a FROM temp",
    "UPDATE t SET name = %s, begin = %s WHERE (id = %s)",
    "UPDATE temp SET x = (x + 1)",
    "DELETE FROM t WHERE id IN (%s, %s)",
    "DELETE FROM temp",
]


class BaseRecognitionTests(RecognitionTests, SimpleTestCase):
    statements = base.SESSION_STATEMENTS
    plain = [*ORM, "SAVEPOINT s1_x2", "RELEASE SAVEPOINT s1_x2"]
    harmless = [
        "ROLLBACK TO SAVEPOINT s1",
        "CREATE TABLE t (set integer)",
        "CREATE TABLE temp (a integer)",
        "CREATE INDEX temp ON t (a)",
        "DROP TABLE t",
        "SET TRANSACTION ISOLATION LEVEL READ COMMITTED",
        "SET LOCAL x = 1",
        "SET CONSTRAINTS ALL IMMEDIATE",
        "SET CONSTRAINT x DEFERRED",
        "WITH x AS (SELECT 1) SELECT * FROM x",
        "BEGIN something ELSE",
    ]
    touching = {
        SETTING: ["SET x = 1", "ALTER SESSION SET x = 1"],
        TEMPORARY: [
            "CREATE TEMPORARY TABLE t (a integer)",
            "CREATE OR REPLACE TEMP VIEW v AS SELECT 1",
            "CREATE GLOBAL TEMPORARY TABLE t (a integer)",
            "DECLARE LOCAL TEMPORARY TABLE t (a integer)",
        ],
        TRANSACTION: ["BEGIN", "BEGIN TRAN", "BEGIN WORK", "START TRANSACTION"],
    }

    def test_call(self):
        self.assertIsNone(self.statements.find_touch_of_call("a_procedure", [1]))


class PostgreSQLRecognitionTests(RecognitionTests, SimpleTestCase):
    statements = postgresql.SESSION_STATEMENTS
    plain = [
        *ORM,
        '(SELECT "a" FROM "t" LIMIT 3) UNION ALL (SELECT "a" FROM "u")',
        'SELECT "t"."id" FROM "t" FOR UPDATE OF "t" SKIP LOCKED',
        "SELECT nextval('t_id_seq')",
        "SELECT $$set x$$, 'It''s', E'it\\'s'",
        'INSERT INTO "t" ("a") VALUES (%s) ON CONFLICT DO NOTHING',
        "INSERT INTO t (a) VALUES (1) ON CONFLICT (a) DO UPDATE SET a = 2",
        'INSERT INTO "t" ("a") SELECT * FROM UNNEST((%s)::integer[])',
        'SAVEPOINT "s1_x2"',
        'RELEASE SAVEPOINT "s1_x2"',
    ]
    harmless = [
        # Reading, and what is over with the transaction.
        "ROLLBACK",
        "COMMIT",
        "END",
        "COMMIT AND NO CHAIN",
        'ROLLBACK TO SAVEPOINT "s1"',
        "SHOW work_mem",
        "VALUES (1)",
        "TABLE t",
        "EXPLAIN (FORMAT JSON) SELECT 1",
        "EXPLAIN ANALYZE SELECT 1",
        "WITH x AS (SELECT 1) UPDATE t SET a = 1",
        "SET LOCAL work_mem = '1MB'",
        "SET LOCAL ROLE x",
        "SET TRANSACTION READ ONLY",
        "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
        "SET CONSTRAINTS ALL IMMEDIATE",
        'SET CONSTRAINTS "a" DEFERRED',
        "SELECT set_config('a.b', 'c', true)",
        "SELECT set_config('a.b', %s, TRUE)",
        "SELECT set_config('a.b', %(b)s, true), set_config('a.c', 'd', true)",
        "SELECT set_config('a.b', lower(a)::text, true) FROM t",
        "SELECT set_config('a.b', 'c', is_local => true)",
        "SELECT pg_catalog.set_config('a.b', 'c, false)', true)",
        "SELECT pg_advisory_xact_lock(1)",
        "SELECT pg_try_advisory_xact_lock_shared(1, 2)",
        "SELECT * FROM advisory_boards, tempo_into",
        "SELECT a FROM t WHERE b = 'pg_advisory_lock(1)'",
        "SELECT $x$ SELECT setseed(0); SET a = 1 $x$",
        "SELECT $x$ $$; SET a = 1 $y$ $x$",
        "SELECT a$b$c, ' $b$; SET a = 1; '",
        "SELECT E'\\'; SET a = 1; \\''",
        "SELECT E'\\\\', '; SET a = 1; '",
        "SELECT '\\' AS a",
        "SELECT 'a''; SET a = 1; ''b'",
        'SELECT "a""; SET a = 1; ""b"',
        'SELECT "set x", "temp" FROM "into"',
        "SELECT temp INTO a FROM email_template",
        "SELECT 1 /* /* nested; */ ; SET a = 1 */",
        "SELECT 1 -- ; SET a = 1",
        "/* SET a = 1 */ SELECT 1",
        # Locks, cursors and tables of the transaction.
        "LOCK TABLE t IN EXCLUSIVE MODE",
        "DECLARE c CURSOR FOR SELECT 1",
        "FETCH 3 FROM c",
        "MOVE 3 IN c",
        "CLOSE c",
        "PREPARE TRANSACTION 'x'",
        "CREATE TEMP TABLE t (a integer) ON COMMIT DROP",
        "CREATE LOCAL TEMPORARY TABLE t ON COMMIT DROP AS SELECT 1",
        # The schema editor's.
        'CREATE TABLE "temp" ("temp" integer)',
        'CREATE INDEX CONCURRENTLY "i" ON "t" ("a")',
        'ALTER TABLE "t" ALTER COLUMN "a" SET NOT NULL',
        'ALTER TABLE "t" RENAME COLUMN "a" TO "b"',
        "CREATE FUNCTION f() RETURNS void AS $$ SET a = 1; $$ LANGUAGE sql",
        "CREATE OR REPLACE PROCEDURE p() LANGUAGE sql AS 'SELECT setseed(1)'",
        "CREATE VIEW template AS SELECT 1",
        "CREATE EXTENSION IF NOT EXISTS hstore",
        "COMMENT ON TABLE t IS 'SET'",
        "DROP SEQUENCE s",
        "TRUNCATE t, u",
        "REFRESH MATERIALIZED VIEW v",
        "SELECT setval(pg_get_serial_sequence('\"t\"','id'), 1, false)",
        # Others.
        "COPY t FROM STDIN",
        "NOTIFY channel, 'LISTEN'",
        "VACUUM ANALYZE t",
        "CALL p()",
        "MERGE INTO t USING u ON a = b WHEN MATCHED THEN UPDATE SET a = 1",
        "ALTER ROLE x SET work_mem = '1MB'",
        "ALTER SYSTEM SET work_mem = '1MB'",
    ]
    touching = {
        SETTING: [
            "SET work_mem = '1MB'",
            "SET work_mem TO DEFAULT",
            "SET SESSION statement_timeout = 1",
            "SET TIME ZONE 'UTC'",
            "SET search_path TO a, b",
            "SET ROLE x",
            "SET SESSION AUTHORIZATION x",
            "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
            "SET custom.setting = 'x'",
            "SET local.setting = 'x'",
            'SET"work_mem"=1',
            "SET XML OPTION DOCUMENT",
            "SET NAMES 'utf8'",
            "RESET ALL",
            "RESET work_mem",
            "DISCARD PLANS",
            "DISCARD ALL",
            "LOAD 'auto_explain'",
            "SELECT set_config('a.b', 'c', false)",
            "SELECT set_config('a.b', 'c', %s)",
            "SELECT set_config('a.b', 'c, true)', false)",
            "SELECT set_config('a.b', f(1, true), false)",
            "SELECT set_config('a', 'b', true), set_config('a', 'b', false)",
            "SELECT set_config('a', 'b', false), set_config('a', 'b', true)",
            "SELECT set_config(a, b, false), true)",
            "SELECT pg_catalog.set_config ('a.b', 'c', false)",
            'SELECT"set_config"(%s, %s, false)',
            "UPDATE t SET a = set_config('a.b', a, false)",
            "WITH x AS (SELECT set_config('a.b', 'c', false)) SELECT 1",
            "SELECT setseed(0.5)",
            "SELECT set_limit(0.5)",
            "SELECT 1; SET work_mem = '1MB'",
            "SET LOCAL a = 1; SET b = 1",
            "SELECT '\\'; SET a = '1'",
            "SELECT E'\\\\'; SET a = '1'",
            "SELECT $x$ $$ $x$; SET a = $$1$$",
            "SELECT a$x$ FROM t; SET a = 1; SELECT b$x$ FROM t",
            "SELECT 1 /* /* */ ' */; SET a = 1; SELECT '1'",
        ],
        ADVISORY_LOCK: [
            "SELECT pg_advisory_lock(1)",
            "SELECT pg_advisory_lock_shared(1, 2)",
            "SELECT pg_try_advisory_lock(%s)",
            "SELECT pg_try_advisory_lock_shared(%s)",
            "SELECT pg_advisory_unlock_all()",
            'SELECT "pg_catalog"."pg_advisory_lock"(1)',
            "SELECT 1 WHERE pg_try_advisory_lock(1)",
            "INSERT INTO t SELECT 1 FROM pg_advisory_lock(1)",
            "(SELECT pg_advisory_lock(1)) UNION (SELECT NULL)",
        ],
        TEMPORARY: [
            "CREATE TEMP TABLE t (a integer)",
            "CREATE TEMPORARY TABLE t AS SELECT 1",
            "CREATE TEMP TABLE t (a integer) ON COMMIT DELETE ROWS",
            "CREATE LOCAL TEMP TABLE IF NOT EXISTS t (a integer)",
            "CREATE GLOBAL TEMPORARY TABLE t (a text DEFAULT 'ON COMMIT DROP')",
            "CREATE TEMP VIEW v AS SELECT 1",
            "CREATE OR REPLACE TEMPORARY VIEW v AS SELECT 1",
            "CREATE TEMP RECURSIVE VIEW v (a) AS SELECT 1",
            "CREATE TEMP SEQUENCE s",
            "CREATE TABLE pg_temp.t (a integer)",
            'CREATE TABLE "pg_temp"."t" (a integer)',
            "CREATE FUNCTION pg_temp.f() RETURNS integer AS $$ $$ LANGUAGE sql",
            "CREATE TYPE pg_temp.y AS ENUM ()",
            "SELECT 1 AS a INTO TEMP t",
            "SELECT 1 AS a INTO TEMPORARY TABLE t",
            'SELECT 1 AS a INTO LOCAL TEMP"t"',
            "SELECT'a'INTO TEMP t",
            "(SELECT 1 AS a INTO TEMP t)",
            "WITH x AS (SELECT 1) SELECT * INTO TEMP t FROM x",
            "EXPLAIN ANALYZE CREATE TEMP TABLE t AS SELECT 1",
            "EXPLAIN (ANALYZE) SELECT 1 AS a INTO TEMP t",
        ],
        BLOCK: [
            "DO $$ BEGIN PERFORM set_config('a', 'b', false); END $$",
            "DO LANGUAGE plpgsql 'BEGIN SET a = 1; END'",
        ],
        LISTENING: ["LISTEN channel", 'LISTEN"channel"', "UNLISTEN *"],
        PREPARED: [
            "PREPARE p AS SELECT 1",
            "PREPARE p (integer) AS SELECT $1",
            'PREPARE"p"AS SELECT 1',
            "EXECUTE p",
            "DEALLOCATE ALL",
        ],
        OPEN_CURSOR: [
            "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
            'DECLARE"c"SCROLL CURSOR WITH HOLD FOR SELECT 1',
            "SELECT dblink_connect('c', 'dbname=x')",
        ],
        TRANSACTION: [
            "BEGIN",
            "BEGIN ISOLATION LEVEL SERIALIZABLE",
            "START TRANSACTION READ ONLY",
            "COMMIT AND CHAIN",
            "ROLLBACK WORK AND CHAIN",
        ],
        UNKNOWN: ["FROBNICATE x", '"SELECT" 1'],
    }

    def test_carriage_return(self):
        """It's the end of a comment."""
        self.assertEqual(self.statements.find_touch("--\rSET a = 1"), SETTING)

    def test_call(self):
        for procname, reason in [
            ("a_function", None),
            ("pg_advisory_lock", ADVISORY_LOCK),
            ("pg_advisory_xact_lock", None),
            # What it's told isn't known.
            ("set_config", SETTING),
        ]:
            with self.subTest(procname):
                self.assertEqual(
                    self.statements.find_touch_of_call(procname, [1]), reason
                )

    @unittest.skipIf(psycopg_sql is None, "psycopg isn't installed.")
    def test_composed(self):
        SQL, Identifier = psycopg_sql.SQL, psycopg_sql.Identifier
        for composed, reason in [
            (SQL("SELECT 1"), None),
            (SQL("SELECT {}").format(psycopg_sql.Literal("; SET x")), None),
            (SQL("SET {} = 1").format(Identifier("work_mem")), SETTING),
            (SQL("SET LOCAL {} = 1").format(Identifier("work_mem")), None),
            (SQL("SELECT {}(%s)").format(Identifier("setseed")), SETTING),
            (
                SQL("SELECT {}(1)").format(Identifier("a", "pg_advisory_lock")),
                ADVISORY_LOCK,
            ),
            (
                SQL("SELECT set_config({}, {}, {})").format("a.b", "c", True),
                None,
            ),
            (
                SQL("SELECT set_config({}, {}, {})").format("a.b", "c", False),
                SETTING,
            ),
            (SQL("; ").join([SQL("SELECT 1"), SQL("LISTEN x")]), LISTENING),
            (SQL("CREATE TEMP TABLE ") + Identifier("t"), TEMPORARY),
        ]:
            with self.subTest(composed=composed):
                self.assertIs(self.statements.is_plain(composed), False)
                self.assertEqual(self.statements.find_touch(composed), reason)


class MySQLRecognitionTests(RecognitionTests, SimpleTestCase):
    statements = mysql.SESSION_STATEMENTS
    plain = [
        *ORM,
        "(SELECT `a` FROM `t` LIMIT 3) UNION ALL (SELECT `a` FROM `u`)",
        "SELECT `t`.`id` FROM `t` FOR UPDATE OF `t` SKIP LOCKED",
        "SELECT 'it\\'s', \"it's\", 5--3",
        "INSERT IGNORE INTO `t` (`a`) VALUES (%s)",
        "INSERT INTO `t` (`a`) VALUES (%s) ON DUPLICATE KEY UPDATE `a` = 1",
        "REPLACE INTO `t` VALUES (1)",
        "SAVEPOINT `s1_x2`",
        "RELEASE SAVEPOINT `s1_x2`",
        "SELECT is_free_lock('a'), release_lock('a'), release_all_locks()",
    ]
    harmless = [
        "ROLLBACK",
        "COMMIT AND NO CHAIN",
        "ROLLBACK TO SAVEPOINT `s1`",
        "SELECT @@version, @@session.sql_mode, @@global.x",
        "SELECT 'a@example.com', \"b@example.com\", `c@d`",
        "SELECT LAST_INSERT_ID()",
        "SELECT 'GET_LOCK(1)'",
        "SELECT '\\'; SET @a = 1; \\''",
        'SELECT "\\"; SET @a = 1; \\""',
        "SELECT ''';SET @a = 1;''', \"\"\";SET @a = 1;\"\"\"",
        "SELECT `a``;SET @a = 1;```",
        "SELECT 1 # ; SET @a = 1",
        "SELECT 1 -- ; SET @a = 1",
        "SELECT 1 /* ; SET @a = 1 */",
        "SELECT /*+ SET_VAR(sort_buffer_size = 16M) */ 1",
        "SELECT /*! STRAIGHT_JOIN */ 1",
        "SHOW TABLES",
        "SHOW GRANTS FOR a@b",
        "EXPLAIN SELECT 1",
        "DESCRIBE t",
        "DO 1",
        "CALL p()",
        "WITH x AS (SELECT 1) SELECT * FROM x",
        "SET GLOBAL max_connections = 5",
        "SET @@GLOBAL.max_connections = 5",
        "SET PERSIST max_connections = 5",
        "SET STATEMENT max_statement_time = 5 FOR SELECT 1",
        "SET STATEMENT sql_mode = 'a,b' FOR (SELECT 1)",
        "SET PASSWORD FOR a@b = 'c'",
        "SET DEFAULT ROLE a FOR b@c",
        "GRANT SELECT ON t TO a@b, 'c'@'d', `e`@`f`",
        "CREATE USER a@b",
        "CREATE OR REPLACE USER a@b",
        "CREATE DEFINER=a@b SQL SECURITY INVOKER VIEW v AS SELECT 1",
        "CREATE DEFINER='a'@'b' VIEW v AS SELECT 1",
        "CREATE TABLE `temporary` (`a` integer)",
        "ALTER TABLE `t` ADD COLUMN `a` integer DEFAULT 0",
        "RENAME TABLE `a` TO `b`",
        "DROP TABLE `t`",
        "FLUSH TABLES",
        "TRUNCATE `t`",
        "LOAD DATA INFILE 'a' INTO TABLE t",
    ]
    touching = {
        VARIABLE: [
            "SET @x = 1",
            "SET@x=1",
            "SET a = 1, @x = 1",
            "SELECT @x := 1",
            "SELECT@x:=1",
            "SELECT 1,@x:=1",
            "SELECT (@x := @x + 1) FROM t",
            "SELECT @`x`",
            "SELECT @'x'",
            "SELECT 1 INTO @x",
            "UPDATE t SET a = (@x := a)",
            "INSERT INTO t VALUES (@x := 1)",
            "SELECT 'It\\\\', @x := 1, '1'",
            "SELECT 'a@b', @x := 1",
            "SELECT /*! @x := */ 1",
            "/*!50000 SET @x = 1 */",
            "/*! /*!50000 SET @x = 1 */ */",
            "SELECT 2*/* it's */3, @x := '1'",
            "LOAD DATA INFILE 'a' INTO TABLE t (@x) SET a = 1",
            "SET STATEMENT max_statement_time = 5 FOR SELECT @x := 1",
            "SET PASSWORD = 'a', @x = 1",
        ],
        SETTING: [
            "SET SESSION sql_mode = ''",
            "SET LOCAL sql_mode = ''",
            "SET @@session.sql_mode = ''",
            "SET@@session.sql_mode=''",
            "SET @@sql_mode = ''",
            "SET sql_mode = ''",
            "SET `sql_mode` = ''",
            "SET`sql_mode`=''",
            "SET NAMES latin1",
            "SET CHARACTER SET latin1",
            "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
            "SET SESSION TRANSACTION READ ONLY",
            "SET autocommit = 0",
            "SET GLOBAL a = 1, SESSION b = 2",
            "SET @@global.a = 1, @@session.b = 2",
            "SET ROLE NONE",
            "USE other",
            "USE`other`",
            "SELECT SQL_CALC_FOUND_ROWS 1",
            "SELECT LAST_INSERT_ID(5)",
            "UPDATE t SET a = LAST_INSERT_ID (a + 1)",
            "SELECT `last_insert_id`(5)",
            "SELECT last_insert_id('a')",
            'SELECT "\\\\"; SET sql_mode = ""',
            "SET STATEMENT a = 1 FOR SET sql_mode = ''",
        ],
        ADVISORY_LOCK: [
            "SELECT GET_LOCK('a', 1)",
            "SELECT get_lock ('a', 1)",
            "SELECT `get_lock`('a', 1)",
            "DO GET_LOCK('a', 1)",
            "INSERT INTO t SELECT GET_LOCK('a', 1)",
            "(SELECT GET_LOCK('a', 1)) UNION (SELECT 1)",
        ],
        TABLE_LOCK: [
            "LOCK TABLES t WRITE",
            "LOCK TABLE t READ",
            "UNLOCK TABLES",
            "FLUSH TABLES WITH READ LOCK",
            "FLUSH TABLES t FOR EXPORT",
            "BACKUP STAGE START",
        ],
        TEMPORARY: [
            "CREATE TEMPORARY TABLE t (a integer)",
            "CREATE OR REPLACE TEMPORARY TABLE t (a integer)",
            "CREATE TEMPORARY TABLE `t` SELECT 1",
            "CREATE /*!32302 TEMPORARY */ TABLE `t` (a integer)",
            "SET STATEMENT a = 1 FOR CREATE TEMPORARY TABLE t (a integer)",
        ],
        BLOCK: ["BEGIN NOT ATOMIC SET sql_mode = ''"],
        PREPARED: [
            "PREPARE p FROM 'SELECT 1'",
            "EXECUTE p",
            "EXECUTE IMMEDIATE 'SELECT 1'",
            "DEALLOCATE PREPARE p",
        ],
        OPEN_CURSOR: ["HANDLER t OPEN"],
        TRANSACTION: [
            "BEGIN",
            "BEGIN WORK",
            "START TRANSACTION READ ONLY",
            "XA START 'x'",
            "COMMIT AND CHAIN",
        ],
        UNKNOWN: ["FROBNICATE x", "BINLOG 'x'"],
    }

    def variants(self, sql):
        yield from super().variants(sql)
        yield "# who; it's me\n" + sql
        yield "#\n" + sql

    def test_code_for_mariadb(self):
        for sql, reason in [
            ("/*M!100100 SET @x = '*' */", VARIABLE),
            ("/*M! SET sql_mode = '' */", SETTING),
            ("/*m! SET sql_mode = '' */", None),
        ]:
            with self.subTest(sql):
                self.assertEqual(self.statements.find_touch(sql), reason)

    def test_call(self):
        self.assertIsNone(self.statements.find_touch_of_call("a_procedure", ()))
        self.assertIsNone(self.statements.find_touch_of_call("a_procedure", None))
        # mysqlclient sets variables.
        self.assertEqual(
            self.statements.find_touch_of_call("a_procedure", [1]), VARIABLE
        )


class SQLiteRecognitionTests(RecognitionTests, SimpleTestCase):
    statements = sqlite3.SESSION_STATEMENTS
    plain = [
        *ORM,
        'SELECT "a" FROM "t" UNION ALL SELECT * FROM (SELECT "a" FROM "u")',
        "SELECT 'it''s', '\\'",
        'INSERT OR IGNORE INTO "t" ("a") VALUES (%s)',
        "REPLACE INTO t VALUES (1)",
        'RELEASE SAVEPOINT "s1_x2"',
    ]
    harmless = [
        "COMMIT",
        "END",
        'ROLLBACK TO SAVEPOINT "s1"',
        "EXPLAIN QUERY PLAN SELECT 1",
        "VALUES (1)",
        "WITH x AS (SELECT 1) SELECT * FROM x",
        "SELECT 'load_extension(1)'",
        "SELECT [a; PRAGMA b = 1], `c; PRAGMA b = 1`",
        'SELECT "a""; PRAGMA b = 1; """',
        "PRAGMA foreign_keys",
        "PRAGMA main.foreign_keys",
        "PRAGMA foreign_key_check",
        'PRAGMA foreign_key_check("t")',
        'PRAGMA table_info("t")',
        "PRAGMA table_xinfo('t')",
        'PRAGMA main.index_list("t")',
        'PRAGMA "main".index_xinfo("i")',
        "PRAGMA integrity_check(5)",
        "PRAGMA quick_check",
        "PRAGMA wal_checkpoint(TRUNCATE)",
        "PRAGMA optimize",
        "PRAGMA user_version = 5",
        'CREATE TABLE "temporary" ("a" integer)',
        'CREATE TABLE "new__t" ("temp" integer)',
        "CREATE VIEW v AS SELECT temp.a FROM temp",
        "CREATE INDEX i ON t (a) WHERE a = 'temp'",
        "CREATE TRIGGER r AFTER INSERT ON t BEGIN UPDATE t SET a = 1; END",
        'ALTER TABLE "t" RENAME TO "temp"',
        'DROP TABLE "t"',
        "VACUUM",
        "ANALYZE",
        "REINDEX",
    ]
    touching = {
        SETTING: [
            "PRAGMA foreign_keys = OFF",
            "PRAGMA foreign_keys=0",
            "PRAGMA foreign_keys(0)",
            "PRAGMA main.cache_size = 5",
            'PRAGMA "temp".cache_size = 5',
            "PRAGMA case_sensitive_like = 1",
            "PRAGMA cell_size_check = 1",
            "PRAGMA read_uncommitted = 1",
            "EXPLAIN PRAGMA foreign_keys = 0",
            "EXPLAIN QUERY PLAN PRAGMA foreign_keys = 0",
            "ATTACH DATABASE 'x' AS y",
            "DETACH y",
            "SELECT load_extension('x')",
            "SELECT \"load_extension\"('x')",
        ],
        TEMPORARY: [
            "CREATE TEMP TABLE t (a integer)",
            "CREATE TEMPORARY TABLE IF NOT EXISTS t (a integer)",
            "CREATE TEMP VIEW v AS SELECT 1",
            "CREATE TEMP TRIGGER r AFTER INSERT ON t BEGIN SELECT 1",
            "CREATE TABLE temp.t (a integer)",
            'CREATE TABLE IF NOT EXISTS "temp"."t" (a integer)',
            "CREATE TABLE [temp].t AS SELECT 1",
            "CREATE VIEW `Temp`.v AS SELECT 1",
            "CREATE TRIGGER 'temp'.r AFTER INSERT ON t BEGIN SELECT 1",
            "CREATE VIRTUAL TABLE temp.t USING fts5(a)",
        ],
        TRANSACTION: ["BEGIN", "BEGIN IMMEDIATE", "SAVEPOINT s"],
        UNKNOWN: ["FROBNICATE x"],
    }


class OracleRecognitionTests(RecognitionTests, SimpleTestCase):
    statements = oracle.SESSION_STATEMENTS
    plain = [
        *ORM,
        '(SELECT "A" FROM "T") UNION ALL (SELECT "A" FROM "U")',
        'SELECT "T"."ID" FROM "T" FOR UPDATE SKIP LOCKED',
        "SELECT q'[it's]' FROM DUAL",
        "MERGE INTO t USING u ON (a = b) WHEN MATCHED THEN UPDATE SET a = 1",
        'SAVEPOINT "s1"',
    ]
    harmless = [
        "ROLLBACK",
        'ROLLBACK TO SAVEPOINT "s1"',
        "SET TRANSACTION READ ONLY",
        "SET CONSTRAINTS ALL IMMEDIATE",
        "LOCK TABLE t IN EXCLUSIVE MODE",
        "SELECT q'[; BEGIN 'x'; ]' FROM DUAL",
        "SELECT Nq'{'; BEGIN }' FROM DUAL",
        "SELECT q'!'; BEGIN !' FROM DUAL",
        "SELECT q'x'; BEGIN x' FROM DUAL",
        "SELECT 'DBMS_LOCK', 'it''s; BEGIN' FROM DUAL",
        "EXPLAIN PLAN SET STATEMENT_ID = 'x' FOR SELECT 1 FROM DUAL",
        "CREATE GLOBAL TEMPORARY TABLE t (a integer)",
        'CREATE TABLE "T" ("A" NUMBER(11))',
        'ALTER TABLE "T" MODIFY "A" NULL',
        "TRUNCATE TABLE t",
        "GRANT SELECT ON t TO x",
    ]
    touching = {
        SETTING: [
            "ALTER SESSION SET NLS_SORT = BINARY",
            "SET ROLE x",
            "BEGIN DBMS_SESSION.SET_CONTEXT('a', 'b', 'c'); END;",
            "CALL DBMS_APPLICATION_INFO.SET_MODULE('a', 'b')",
            "BEGIN DBMS_OUTPUT.ENABLE(NULL); END;",
            'SELECT f("DBMS_SESSION".x) FROM DUAL',
        ],
        ADVISORY_LOCK: [
            "BEGIN :x := DBMS_LOCK.REQUEST(1); END;",
            "SELECT DBMS_LOCK.REQUEST(1) FROM DUAL",
        ],
        TEMPORARY: ["CREATE PRIVATE TEMPORARY TABLE t (a integer)"],
        BLOCK: [
            "BEGIN p(); END;",
            "DECLARE x integer; BEGIN p(x); END;",
            "CALL p()",
        ],
        UNKNOWN: ["FROBNICATE x"],
    }

    def test_call(self):
        for procname, reason in [
            ("a_procedure", None),
            ("dbms_lock.release", ADVISORY_LOCK),
            ("DBMS_OUTPUT.ENABLE", SETTING),
        ]:
            with self.subTest(procname):
                self.assertEqual(
                    self.statements.find_touch_of_call(procname, []), reason
                )
