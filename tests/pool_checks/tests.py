import contextlib
import os
from io import StringIO
from unittest import mock, skipUnless

import scripts
from django.core.checks import Tags, run_checks
from django.core.checks.pool import check_pool_size
from django.core.management import call_command
from django.db import ProgrammingError, connection, connections
from django.db.pool import ConnectionPool
from django.test import SimpleTestCase

REMEDY_FOR_AGE = (
    "POOL doesn't support persistent connections. Remove CONN_MAX_AGE, or set it to "
    "0; POOL's max_lifetime limits a connection's age."
)
REMEDY_FOR_BOTH = (
    "POOL and OPTIONS['pool'] exclude each other. Remove OPTIONS['pool']; its options "
    "can be written into POOL."
)


NULL_POOL = "django.db.pool.NullPool"


class NotAPool:
    pass


class CustomPool(ConnectionPool):
    pass


def not_called(connection):
    raise AssertionError("Checks don't call callables.")


class PoolChecksMixin:
    databases = {"default"}

    @contextlib.contextmanager
    def database(self, alias="checked", **settings):
        """Add an alias that differs in some settings from "default"."""
        settings = {**connection.settings_dict, "POOL": True, **settings}
        with (
            mock.patch.dict(connections.settings, {alias: settings}),
            mock.patch.object(type(self), "databases", {*self.databases, alias}),
        ):
            try:
                yield alias
            finally:
                if hasattr(connections._connections, alias):
                    connections[alias].close()
                    del connections[alias]

    def get_issues(self, prefix="pool.", **kwargs):
        # Without apps, because the checks of models and their fields may ask
        # MySQL for its version.
        issues = run_checks(app_configs=[], **kwargs)
        return [issue for issue in issues if str(issue.id).startswith(prefix)]

    def assertErrors(self, messages, **settings):
        """
        Find exactly these errors, all in one alias, without connecting.
        """
        wrapper_class = type(connections["default"])
        with (
            self.database(**settings),
            mock.patch.object(wrapper_class, "get_new_connection") as connect,
        ):
            errors = self.get_issues()
        self.assertEqual([error.msg for error in errors], messages)
        for error in errors:
            self.assertEqual(error.id, "pool.E001")
            self.assertIs(error.is_serious(), True)
            self.assertEqual(error.obj, "DATABASES['checked']")
        connect.assert_not_called()

    def assertPoolError(self, pool, message):
        self.assertErrors(["DATABASES['checked']['POOL']: %s" % message], POOL=pool)


class ModeTests(PoolChecksMixin, SimpleTestCase):
    def get_warnings(self, pool, **settings):
        with self.database(POOL={"mode": "transaction", **pool}, **settings):
            return [
                (issue.id, issue.obj, issue.msg.partition("['POOL']: ")[2])
                for issue in self.get_issues()
                if "checked" in issue.obj
            ]

    def test_fine(self):
        self.assertEqual(self.get_warnings({}), [])
        self.assertEqual(
            self.get_warnings({"mode": "session", "pool_class": NULL_POOL}), []
        )

    def test_without_autocommit(self):
        message = (
            "mode 'transaction' has no effect, for without AUTOCOMMIT a transaction "
            "lasts until the connection is closed."
        )
        self.assertEqual(
            self.get_warnings({}, AUTOCOMMIT=False),
            [("pool.W002", "DATABASES['checked']", message)],
        )

    def test_new_connection_for_each_statement(self):
        message = "each statement needs a new connection in mode 'transaction' with %s."
        self.assertEqual(
            self.get_warnings({"pool_class": NULL_POOL}),
            [("pool.W003", "DATABASES['checked']", message % "NullPool")],
        )
        found = self.get_warnings({"reset": "always"})
        if connection.vendor == "postgresql":
            self.assertEqual(found, [])
        else:
            what = "this backend and reset 'always'"
            self.assertEqual(
                found, [("pool.W003", "DATABASES['checked']", message % what)]
            )


class SettingsTests(PoolChecksMixin, SimpleTestCase):
    def test_valid(self):
        for pool in [
            None,
            False,
            True,
            {},
            {"min_size": 1, "max_size": 1},
            {"max_size": None, "timeout": None, "max_idle": None},
            {"timeout": 0, "max_waiting": 0, "leak_threshold": 0.5},
            {"check": "off", "reset": "always"},
            {"check": not_called, "reset": not_called},
            {"check": "pool_checks.tests.not_called"},
            {"reset": "pool_checks.tests.not_called"},
            {"pool_class": "pool_checks.tests.CustomPool"},
            {"pool_class": CustomPool},
        ]:
            with self.subTest(pool=pool):
                self.assertErrors([], POOL=pool)

    def test_unknown_key(self):
        self.assertPoolError(
            {"max_sise": 5}, "Unknown option 'max_sise'. Did you mean 'max_size'?"
        )

    def test_unknown_key_like_nothing(self):
        self.assertPoolError(
            {"xyz": 5},
            "Unknown option 'xyz'. Remove it, or use one of: min_size, max_size, "
            "timeout, max_waiting, max_lifetime, max_idle, mode, check, reset, "
            "leak_threshold, reconnect_timeout, pool_class.",
        )

    def test_key_of_psycopg_pool(self):
        self.assertPoolError(
            {"num_workers": 3},
            "'num_workers' is not an option of POOL: remove it; a pool opens "
            "connections as they are needed.",
        )

    def test_wrong_types(self):
        for options, message in [
            (
                {"max_size": "10"},
                "'max_size' must be an integer of at least 1, or None, not '10'.",
            ),
            (
                {"max_size": 0},
                "'max_size' must be an integer of at least 1, or None, not 0.",
            ),
            (
                {"min_size": True},
                "'min_size' must be an integer of at least 0, not True.",
            ),
            (
                {"timeout": -1},
                "'timeout' must be a number of seconds of at least 0, or None, not -1.",
            ),
            (
                {"max_lifetime": 0},
                "'max_lifetime' must be a number of seconds above 0, or None, not 0.",
            ),
            (
                {"check": "sometimes"},
                "'check' must be one of 'auto', 'ping', 'off', or a dotted path to a "
                "callable, not 'sometimes'.",
            ),
            (
                {"reset": 1},
                "'reset' must be one of 'auto', 'always', 'rollback', or a dotted "
                "path to a callable, not 1.",
            ),
            (
                {"pool_class": 1},
                "'pool_class' must be a dotted path to a subclass of "
                "django.db.pool.BasePool, not 1.",
            ),
        ]:
            with self.subTest(options=options):
                self.assertPoolError(options, message)

    def test_contradiction(self):
        self.assertPoolError(
            {"min_size": 20},
            "'min_size' (20) must not exceed 'max_size' (10). Raise 'max_size' or "
            "lower 'min_size'.",
        )

    def test_not_a_dict(self):
        for pool, name in [
            ("true", "str"),
            ("", "str"),
            (1, "int"),
            (0, "int"),
            ([], "list"),
        ]:
            with self.subTest(pool=pool):
                self.assertPoolError(
                    pool,
                    "It must be True, False or a dict of options, not %s. Use "
                    '"POOL": True to pool with the default options.' % name,
                )

    def test_conn_max_age(self):
        for age in [None, 60]:
            with self.subTest(age=age):
                self.assertErrors(
                    ["DATABASES['checked']: %s" % REMEDY_FOR_AGE], CONN_MAX_AGE=age
                )

    def test_options_pool(self):
        for pool in [True, {"max_size": 4}]:
            with self.subTest(pool=pool):
                self.assertErrors(
                    ["DATABASES['checked']: %s" % REMEDY_FOR_BOTH],
                    OPTIONS={"pool": pool},
                )

    def test_without_pool(self):
        """Without POOL, other settings aren't this check's concern."""
        self.assertErrors(
            [], POOL=False, CONN_MAX_AGE=60, OPTIONS={"pool": {"max_size": 4}}
        )

    def test_pool_class_not_importable(self):
        self.assertPoolError(
            {"pool_class": "absent_module.Pool"},
            "pool_class 'absent_module.Pool' can't be imported: No module named "
            "'absent_module'. Install its package, or correct the path.",
        )

    def test_pool_class_without_attribute(self):
        self.assertPoolError(
            {"pool_class": "pool_checks.tests.Absent"},
            "pool_class 'pool_checks.tests.Absent' can't be imported: Module "
            '"pool_checks.tests" does not define a "Absent" attribute/class. Install '
            "its package, or correct the path.",
        )

    def test_pool_class_no_pool(self):
        for path in ["NotAPool", "not_called"]:
            path = "pool_checks.tests.%s" % path
            with self.subTest(path=path):
                self.assertPoolError(
                    {"pool_class": path},
                    "pool_class '%s' isn't a subclass of django.db.pool.BasePool. "
                    "Name one that is, or remove 'pool_class'." % path,
                )

    def test_callables_not_importable(self):
        for name in ["check", "reset"]:
            with self.subTest(name=name):
                self.assertPoolError(
                    {name: "absent_module.function"},
                    "%s 'absent_module.function' can't be imported: No module named "
                    "'absent_module'. Install its package, or correct the path." % name,
                )

    def test_callables_not_callable(self):
        for name in ["check", "reset"]:
            with self.subTest(name=name):
                self.assertPoolError(
                    {name: "pool_checks.tests.REMEDY_FOR_AGE"},
                    "%s 'pool_checks.tests.REMEDY_FOR_AGE' isn't callable. Name a "
                    "function that takes the driver's connection." % name,
                )

    def test_several(self):
        """Everything that is wrong is reported at once."""
        prefix = "DATABASES['checked']['POOL']: "
        self.assertErrors(
            [
                "%sUnknown option 'max_sise'. Did you mean 'max_size'?" % prefix,
                "%s'timeout' must be a number of seconds of at least 0, or None, not "
                "'5'." % prefix,
                "DATABASES['checked']: %s" % REMEDY_FOR_AGE,
                "DATABASES['checked']: %s" % REMEDY_FOR_BOTH,
            ],
            POOL={"max_sise": 5, "timeout": "5"},
            CONN_MAX_AGE=60,
            OPTIONS={"pool": True},
        )

    def test_several_imports(self):
        reason = "No module named 'absent_module'. Install its package, or correct"
        self.assertErrors(
            [
                "DATABASES['checked']['POOL']: %s 'absent_module.%s' can't be "
                "imported: %s the path." % (name, name, reason)
                for name in ["pool_class", "check", "reset"]
            ],
            POOL={
                name: "absent_module.%s" % name
                for name in ["pool_class", "check", "reset"]
            },
        )

    def test_several_aliases(self):
        with (
            self.database("first", POOL={"max_size": 0}),
            self.database("second", POOL={"max_size": -1}),
        ):
            errors = self.get_issues()
        self.assertEqual(
            [error.obj for error in errors],
            ["DATABASES['first']", "DATABASES['second']"],
        )

    def test_no_secrets(self):
        with self.database(POOL={"max_size": 0}, PASSWORD="hush"):
            for error in self.get_issues():
                self.assertNotIn("hush", str(error))

    def test_command(self):
        out = StringIO()
        call_command("check", "pool_checks", stdout=out)
        self.assertIn("System check identified no issues", out.getvalue())

    def test_check_connects_to_nothing(self):
        """Checks need no server, unless --database says so."""
        with (
            mock.patch.object(
                type(connections["default"]), "get_new_connection"
            ) as connect,
            mock.patch.object(ConnectionPool, "acquire") as acquire,
        ):
            run_checks(app_configs=[])
        connect.assert_not_called()
        acquire.assert_not_called()


class ManageTests(scripts.ScriptTestMixin, SimpleTestCase):
    """The same from the command line, where all settings are read anew."""

    databases = {"default"}
    source = """
import scripts

scripts.configure()
from django.core.management import execute_from_command_line

execute_from_command_line(["manage.py", "check", "--no-color"])
"""

    def run_check(self, **extra):
        database = scripts.get_database(connection, **extra)
        if connection.vendor != "sqlite":
            # There is nothing that could be connected to.
            database.update(HOST="127.0.0.1", PORT="1")
        return scripts.run_script(self.source, {"default": database})

    def test_valid(self):
        result = self.run_check(POOL={"max_size": 20})
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(
            result.stdout, "System check identified no issues (0 silenced).\n"
        )
        self.assertEqual(result.stderr, "")

    def test_invalid(self):
        result = self.run_check(POOL={"max_sise": 20}, CONN_MAX_AGE=1)
        self.assertEqual(result.returncode, 1, result.stderr)
        self.assertIn(
            "(pool.E001) DATABASES['default']['POOL']: Unknown option 'max_sise'. Did "
            "you mean 'max_size'?",
            result.stderr,
        )
        self.assertIn(
            "(pool.E001) DATABASES['default']: %s" % REMEDY_FOR_AGE, result.stderr
        )
        self.assertNotIn("Traceback", result.stderr)


class SizeTests(PoolChecksMixin, SimpleTestCase):
    def get_warnings(self, processes=None, alias="checked", **options):
        variables = {} if processes is None else {"WEB_CONCURRENCY": processes}
        with (
            mock.patch.dict(os.environ, variables),
            self.database(alias, POOL={"timeout": 10.0, **options}),
        ):
            if processes is None:
                os.environ.pop("WEB_CONCURRENCY", None)
            return self.get_issues(tags=[Tags.database], databases=[alias])

    def get_limit(self):
        sql = (
            "SELECT @@max_connections"
            if connection.vendor == "mysql"
            else "SELECT current_setting('max_connections')::integer - "
            "current_setting('superuser_reserved_connections')::integer"
        )
        with connection.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchone()[0]

    def assertSizeWarning(self, warnings, what):
        (warning,) = warnings
        self.assertEqual(warning.id, "pool.W001")
        self.assertEqual(warning.obj, "DATABASES['checked']")
        self.assertIs(warning.is_serious(), False)
        self.assertEqual(
            warning.msg,
            "The server of 'checked' takes %d connections, but %s."
            % (self.get_limit(), what),
        )
        self.assertEqual(
            warning.hint,
            "Lower max_size or WEB_CONCURRENCY, or raise the server's limit. Other "
            "clients need connections too.",
        )

    def test_small(self):
        for processes in [None, "1", "2", "0", "auto", ""]:
            with self.subTest(processes=processes):
                self.assertEqual(self.get_warnings(processes, max_size=5), [])

    @skipUnless(connection.vendor == "sqlite", "SQLite has no server.")
    def test_no_server(self):
        self.assertEqual(self.get_warnings("1000", max_size=1000), [])
        self.assertEqual(self.get_warnings("1000", max_size=None), [])

    @skipUnless(connection.vendor in {"mysql", "postgresql"}, "Needs a server.")
    def test_too_many_processes(self):
        self.assertSizeWarning(
            self.get_warnings("100", max_size=20),
            "100 processes may open 20 connections each (max_size=20), 2000 in all",
        )

    @skipUnless(connection.vendor in {"mysql", "postgresql"}, "Needs a server.")
    def test_boundary(self):
        limit = self.get_limit()
        self.assertEqual(self.get_warnings("1", max_size=limit), [])
        self.assertSizeWarning(
            self.get_warnings("1", max_size=limit + 1),
            "1 process may open %d connections (max_size=%d)" % (limit + 1, limit + 1),
        )

    @skipUnless(connection.vendor in {"mysql", "postgresql"}, "Needs a server.")
    def test_unlimited(self):
        self.assertSizeWarning(
            self.get_warnings(max_size=None), "POOL sets no limit (max_size=None)"
        )

    @skipUnless(connection.vendor in {"mysql", "postgresql"}, "Needs a server.")
    def test_command(self):
        err = StringIO()
        with (
            mock.patch.dict(os.environ, {"WEB_CONCURRENCY": "1000"}),
            self.database(POOL={"max_size": 10}),
        ):
            call_command("check", "pool_checks", databases=["checked"], stderr=err)
            self.assertIn("(pool.W001) The server of 'checked' takes", err.getvalue())
            err = StringIO()
            call_command("check", "pool_checks", stdout=err, stderr=err)
            self.assertNotIn("pool.W001", err.getvalue())

    def test_other_alias(self):
        """Only the aliases that --database names are asked."""
        with (
            mock.patch.dict(os.environ, {"WEB_CONCURRENCY": "1000"}),
            self.database(POOL={"max_size": None}),
        ):
            self.assertEqual(self.get_issues(tags=[Tags.database], databases=[]), [])

    def test_invalid_setting(self):
        """What's wrong with POOL itself isn't reported twice."""
        for options in [
            {"POOL": {"max_sise": 1}},
            {"POOL": {"check": "absent_module.check"}},
            {"CONN_MAX_AGE": 60},
        ]:
            with self.subTest(options=options), self.database(**options) as alias:
                # Called alone, for other checks of databases need to connect.
                self.assertEqual(check_pool_size(databases=[alias]), [])

    def test_without_pool(self):
        with (
            mock.patch.dict(os.environ, {"WEB_CONCURRENCY": "1000"}),
            self.database(POOL=False) as alias,
        ):
            self.assertEqual(self.get_issues(databases=[alias]), [])

    def test_may_not_ask(self):
        """The limit may be a secret to the user that connects."""
        with self.database(POOL={"max_size": None}) as alias:
            connector = connections[alias].connection_pool.connector
            error = ProgrammingError("Permission denied.")
            with mock.patch.object(connector, "connection_limit", side_effect=error):
                issues = self.get_issues(tags=[Tags.database], databases=[alias])
        self.assertEqual(issues, [])
