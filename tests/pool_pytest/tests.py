"""
pytest-django's documented patterns work with a pool.

The tests of a project, in ../pytest_project/, are run as its developers would
run them: in a process of their own, with a POOL, with pytest-django and
pytest-xdist. That project has tests of each pattern; here, the options of the
command are varied, and what is left behind is looked at.
"""

import contextlib
import glob
import json
import os
import re
import sqlite3
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from unittest import skipUnless

import servers
import settings_common

import scripts
from django.db import connection
from django.test import SimpleTestCase

PROJECT = Path(__file__).resolve().parent.parent / "pytest_project"

# Seconds. Nothing takes that long unless something is wrong.
TIMEOUT = 240

# How many connections the project's pools have at most: one for the test, and
# fewer others than there are threads that need them.
MAX_SIZE = 4

# How the project's tests end.
OUTCOMES = {"passed": 81, "xfailed": 2}
# How many of them need connections besides that of a database in memory.
NEED_CONNECTIONS = 15

# What the project's second migration adds.
GENRES = 3


@skipUnless(find_spec("pytest_django"), "pytest-django isn't installed.")
@skipUnless(
    connection.vendor in {"mysql", "postgresql", "sqlite"},
    "The project isn't prepared for this database.",
)
@skipUnless(settings_common.get_pool_options(), "There is no pool.")
class ProjectTests(SimpleTestCase):
    databases = {"default"}

    def setUp(self):
        directory = tempfile.TemporaryDirectory(prefix="pool-")
        self.addCleanup(directory.cleanup)
        self.directory = directory.name
        self.server = None
        if connection.vendor != "sqlite":
            self.server = servers.shared_server(connection.vendor)
        # Other processes may run the same test on the same server.
        self.prefix = "bookshop_%d" % os.getpid()

    # The project's databases. None but the test databases ever exist.

    def get_databases(self):
        options = settings_common.get_pool_options()
        pool = {**(options if isinstance(options, dict) else {}), "max_size": MAX_SIZE}
        databases = {}
        for alias in ["default", "archive"]:
            name = "%s_%s" % (self.prefix, alias)
            database = scripts.get_database(connection, POOL=pool)
            if self.server is None:
                database["NAME"] = os.path.join(self.directory, name)
                database["TEST"] = {"NAME": self.get_test_name(alias)}
            else:
                database["NAME"] = name
            databases[alias] = database
        databases["replica"] = {
            **databases["default"],
            "TEST": {"MIRROR": "default"},
        }
        return databases

    def get_test_name(self, alias, suffix=""):
        """Return the name of the database that pytest-django creates."""
        name = "test_%s_%s" % (self.prefix, alias)
        if self.server is None:
            name = os.path.join(self.directory, name)
        return name + suffix

    def get_existing(self):
        """Return the names of the test databases that exist."""
        if self.server is None:
            pattern = os.path.join(self.directory, "test_%s_*" % self.prefix)
            return set(glob.glob(pattern))
        rows = self.server.execute(
            {
                "mysql": "SELECT schema_name FROM information_schema.schemata",
                "postgresql": "SELECT datname FROM pg_database",
            }[connection.vendor]
        )
        return {name for name, in rows if name.startswith("test_%s_" % self.prefix)}

    def drop_databases(self):
        if self.server is not None:
            for name in self.get_existing():
                self.server.drop_database(name)

    def execute(self, sql):
        """Run a statement on the test database, without a pool."""
        name = self.get_test_name("default")
        if self.server is not None:
            return self.server.execute(sql, database=name)
        with contextlib.closing(sqlite3.connect(name)) as database:
            rows = database.execute(sql).fetchall()
            database.commit()
        return rows

    def assertNoConnections(self):
        if self.server is not None:
            for name in self.get_existing():
                self.assertEqual(
                    self.server.wait_for_connection_count(0, name), 0, name
                )

    # Running pytest.

    def run_pytest(self, *args, databases=None, **outcomes):
        """
        Run the project's tests, assert that they end as expected, and return
        what conftest.py reports of each.
        """
        report_path = os.path.join(self.directory, "report")
        env = scripts.get_environment(
            databases or self.get_databases(),
            # Unlike Python's options, these reach the workers of xdist.
            PYTHONDEVMODE="1",
            PYTHONWARNINGS="error",
            POOL_TEST_DRIVER=connection.Database.__name__,
            POOL_TEST_REPORT=report_path,
        )
        for name in list(env):
            # What is meant for the tests that run this one.
            if name.startswith("PYTEST_") or name in {
                "DJANGO_SETTINGS_MODULE",
                "TOX_PARALLEL_ENV",
            }:
                del env[name]
        result = subprocess.run(
            [sys.executable, "-m", "pytest", *args],
            env=env,
            cwd=PROJECT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            timeout=TIMEOUT,
        )
        output = "%s\n%s" % (result.stdout, result.stderr)
        self.assertEqual(result.returncode, 0, output)
        # Here the interpreter complains of what it finds as it exits.
        self.assertEqual(result.stderr, "", output)
        summary = result.stdout.splitlines()[-1]
        counts = {
            noun: int(count)
            # Warnings would be among these.
            for count, noun in re.findall(r"(\d+) ([a-z]+)(?=[, ])", summary)
            if noun != "in"
        }
        self.assertEqual(counts, outcomes or OUTCOMES, output)
        reports = []
        for path in glob.glob(report_path + "-*"):
            reports += map(json.loads, Path(path).read_text().splitlines())
            os.unlink(path)
        self.assertEqual(len(reports), sum(counts.values()))
        self.assertNoConnections()
        return reports

    def test_reuse_db(self):
        """
        Databases are kept, used again and created anew, while nobody stays
        connected to them.
        """
        self.addCleanup(self.drop_databases)
        kept = {self.get_test_name("default"), self.get_test_name("archive")}

        reports = self.run_pytest("--reuse-db")
        self.assertEqual(self.get_existing(), kept)
        self.check_pools(reports)
        self.execute("CREATE TABLE is_old (number integer)")

        # Parts of the project will do from here on.
        self.run_pytest(
            "--reuse-db",
            "books/tests/test_databases.py",
            "books/tests/test_db.py",
            passed=18,
            xfailed=1,
        )
        self.assertEqual(self.get_existing(), kept)
        self.assertEqual(self.execute("SELECT number FROM is_old"), [])

        self.run_pytest(
            "--reuse-db",
            "--create-db",
            "--nomigrations",
            "books/tests/test_blocking.py",
            "books/tests/test_unittest.py",
            passed=22,
        )
        self.assertEqual(self.get_existing(), kept)
        with self.assertRaisesRegex(Exception, "is_old"):
            self.execute("SELECT number FROM is_old")

    def check_pools(self, reports):
        """The pools were used, by all tests of a process the same ones."""
        self.assertEqual(
            {report["database"] for report in reports},
            {self.get_test_name("default")},
        )
        self.assertEqual(
            {report["driver"] for report in reports}, {connection.Database.__name__}
        )
        # The last test's report is from when the settings are restored.
        last = reports[-2]["pools"]
        self.assertEqual(set(last), {"default", "archive", "replica"})
        default = last["default"]
        # Connections are lent again and again. Tests that change settings have
        # them replaced, min_size ones as well.
        self.assertGreater(default["acquired"], 4 * default["opened"])
        self.assertGreater(default["reused"], 0)

    @skipUnless(find_spec("xdist"), "pytest-xdist isn't installed.")
    def test_xdist(self):
        """
        Each process has databases and pools of its own, and drops them.
        """
        self.addCleanup(self.drop_databases)
        reports = self.run_pytest("-n", "2")
        self.assertEqual(
            {report["database"] for report in reports},
            {self.get_test_name("default", suffix) for suffix in ["_gw0", "_gw1"]},
        )
        self.assertEqual(self.get_existing(), set())

    @skipUnless(connection.vendor == "sqlite", "Databases in memory are SQLite's.")
    def test_in_memory(self):
        """
        Unless told otherwise, tests on SQLite use databases in memory, which
        bypass the pool.
        """
        databases = self.get_databases()
        for alias in ["default", "archive"]:
            del databases[alias]["TEST"]
        reports = self.run_pytest(
            databases=databases,
            skipped=NEED_CONNECTIONS,
            **{**OUTCOMES, "passed": OUTCOMES["passed"] - NEED_CONNECTIONS},
        )
        # But for the last one, when the settings are restored.
        for report in reports[:-1]:
            # Skipped tests don't get that far.
            if report["database"] is not None:
                self.assertIn("mode=memory", report["database"])
            self.assertEqual(report["pools"], {})
        self.assertEqual(self.get_existing(), set())
