"""
Django's own test suite, with and without the pool: running it, keeping what
became of each test, and telling the difference.
"""

import ast
import hashlib
import itertools
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import namedtuple
from datetime import datetime, timezone
from pathlib import Path

import sdists
import servers
import suite

HARNESS = Path(__file__).resolve().parent / "upstream_suite"
RESULTS = sdists.CACHE / "upstream"

# How the pool gets into Django.
BASELINE, OVERLAY, PATCHED = "baseline", "overlay", "patched"

HAVE_DOCSTRINGS = (ast.AsyncFunctionDef, ast.ClassDef, ast.FunctionDef, ast.Module)

SUCCESSES = {"passed", "expected failure"}

# Tests whose failing says nothing of the pool, and the reason.
NOT_COMPARED = {
    "serializers.test_deserialization.TestDeserializer.test_crafted_xml_performance": (
        "It compares times of about a millisecond, and fails without POOL as well "
        "while the machine is busy with other tests."
    ),
}

# Why Django skips tests on SQLite databases in memory. One test creates such
# databases, and then these tests are skipped in the rest of that process,
# also if its own databases are files: whether they run is up to the order.
SKIPPED_BY_ORDER = {
    "the sqlite backend's close() method is a no-op when using an in-memory database",
    "For SQLite in-memory tests, closing the connection destroys the database.",
}

# Seconds. What an ended process had open may take a moment to be gone.
EXIT_TIME = 10

Database = namedtuple("Database", ["vendor", "engine"])

# The settings modules that can be used, and what they stand for.
DATABASES = {
    "test_sqlite": Database("sqlite", "django.db.backends.sqlite3"),
    "test_postgresql": Database("postgresql", "django.db.backends.postgresql"),
    "test_mysql": Database("mysql", "django.db.backends.mysql"),
    "test_spatialite": Database("sqlite", "django.contrib.gis.db.backends.spatialite"),
    "test_postgis": Database("postgresql", "django.contrib.gis.db.backends.postgis"),
    "test_mysqlgis": Database("mysql", "django.contrib.gis.db.backends.mysql"),
}


class Run:
    """
    One run of Django's test suite.

    pool is what POOL is in each alias, or False. arguments are those for
    Django's runtests.py. start_method is how parallel processes are started.
    """

    def __init__(self, version, leg, settings, pool, arguments, start_method="fork"):
        self.version = version
        self.leg = leg
        self.settings = settings
        self.database = DATABASES[settings]
        self.pool = pool
        self.arguments = arguments
        self.start_method = start_method

    def __str__(self):
        name = "Django %s, %s, %s" % (self.version, self.settings, self.leg)
        if self.leg != BASELINE:
            name += ", POOL=%r" % (self.pool,)
        return name

    def get_baseline(self):
        """Return the run without the pool that this is to be compared to."""
        return Run(
            self.version,
            BASELINE,
            self.settings,
            False,
            self.arguments,
            self.start_method,
        )

    @property
    def what(self):
        """Return what is run: it changes with all of ours that matters."""
        return digest(
            self.version,
            self.settings,
            self.pool,
            self.arguments,
            self.start_method,
            digest_sources(HARNESS, HARNESS.glob("*.py")),
            self.get_sources_digest(),
        )

    def get_sources_digest(self):
        """Return a digest of all code that makes the pool."""
        if self.leg == BASELINE:
            return ""
        if self.leg == PATCHED:
            return self.get_series_digest("django", "tests")
        package = suite.ROOT / "django_pool_patch"
        files = [*package.glob("*.py"), *package.glob("overlay/django/**/*.py")]
        return digest(digest_sources(package, files), self.get_series_digest("tests"))

    def get_series_digest(self, *directories):
        """
        Return a digest of what the patches change in directories. The tests
        that they add don't count: they are run by themselves often enough.
        """
        tree, changed = self.get_tree(), set()
        pattern = r"^\+\+\+ b/((?:%s)/(?!db_pool/).+\.py)$" % "|".join(directories)
        for patch in sdists.get_series(self.version):
            names = re.findall(pattern, patch.read_text(), re.MULTILINE)
            changed.update(tree / name for name in names)
        return digest_sources(tree, changed)

    def get_path(self, what):
        """Return where the result is kept: it depends on the machine too."""
        server = describe_server(self.database.vendor)
        name = digest(what, platform.python_version(), server)
        return RESULTS / ("%s.json" % name)

    def get_result(self):
        """Return the kept result, or None."""
        try:
            return json.loads(self.get_path(self.what).read_text())
        except FileNotFoundError:
            return None

    def run(self):
        """
        Run the tests, with their output, and return and keep the result. It's
        None if the run didn't come to its end.
        """
        what, tree = self.what, self.get_tree()
        directory = tempfile.mkdtemp(prefix="upstream-")
        path = [tree, self.stage(directory)]
        if (result := self.run_once(self.arguments, directory, path)) is None:
            return None
        if tests := self.get_skipped_by_order(result):
            # As the first tests of their process.
            arguments = ["--noinput", "--parallel=1", *tests]
            if (again := self.run_once(arguments, directory, path)) is None:
                return None
            # Nothing else: a run that didn't skip them has what they leave
            # behind in another process than the one that looks for it.
            result["outcomes"].update(again["outcomes"])
        shutil.rmtree(directory)
        result.update(
            what=what,
            version=self.version,
            python=platform.python_version(),
            server=describe_server(self.database.vendor),
            date=datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        )
        RESULTS.mkdir(parents=True, exist_ok=True)
        self.get_path(what).write_text(json.dumps(result))
        return result

    @staticmethod
    def get_skipped_by_order(result):
        """Return the tests that are skipped only for what ran before."""
        return sorted(
            test
            for test, (outcome, reason) in result["outcomes"].items()
            if outcome == "skipped" and reason in SKIPPED_BY_ORDER
        )

    def run_once(self, arguments, directory, path):
        """
        Return what came of one process of Django's runtests.py, or None. path
        is Python's, and begins with the source tree.
        """
        directory = tempfile.mkdtemp(dir=directory)
        result_path = os.path.join(directory, "result.json")
        databases = self.get_databases(directory)
        command = [
            sys.executable,
            "runtests.py",
            "--settings=upstream_settings",
            *arguments,
        ]
        started = time.monotonic()
        process = subprocess.run(
            command,
            cwd=path[0] / "tests",
            stdin=subprocess.DEVNULL,
            env={
                **self.get_environment(path),
                "UPSTREAM_DATABASES": json.dumps(databases),
                "UPSTREAM_DIRECTORY": directory,
                "UPSTREAM_LEG": self.leg,
                "UPSTREAM_RESULT": result_path,
                "UPSTREAM_START_METHOD": self.start_method,
            },
        )
        try:
            result = json.loads(Path(result_path).read_text())
        except FileNotFoundError:
            print("The run ended with exit status %s." % process.returncode)
            return None
        result["seconds"] = round(time.monotonic() - started)
        result["connections_after_exit"] = self.wait_for_disconnection(databases)
        return result

    def get_tree(self):
        """Return the source tree that has Django and its tests."""
        if self.leg == PATCHED:
            return sdists.ensure_patched(self.version)
        if self.leg == OVERLAY:
            # Some of Django's tests have to be told to do without POOL.
            return sdists.ensure_pristine_with_tests(self.version)
        return sdists.ensure_pristine(self.version)

    def get_databases(self, directory):
        """Return DATABASES, for a server that this may start."""
        databases = {}
        for alias in ["default", "other"]:
            if self.database.vendor == "sqlite":
                database = {"NAME": os.path.join(directory, "%s.sqlite3" % alias)}
                # Or else they would be in memory, where nothing is pooled.
                database["TEST"] = {
                    "NAME": os.path.join(directory, "test_%s.sqlite3" % alias)
                }
            else:
                server = servers.shared_server(self.database.vendor)
                database = server.settings("django_%s" % alias)
                # Some tests, and MySQL's features, look into it.
                server.drop_database(database["NAME"])
                server.create_database(database["NAME"])
            database["ENGINE"] = self.database.engine
            if self.pool is not False:
                database["POOL"] = self.pool
            databases[alias] = database
        return databases

    def stage(self, directory):
        """
        Return a directory with what is to be on Python's path. A copy: nothing
        else of ours is found there, and it may be edited during a run.
        """
        stage = os.path.join(directory, "path")
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(HARNESS, stage, ignore=ignore)
        if self.leg == OVERLAY:
            package = "django_pool_patch"
            shutil.copytree(
                suite.ROOT / package, os.path.join(stage, package), ignore=ignore
            )
        return stage

    def get_environment(self, path):
        environment = {
            name: value
            for name, value in os.environ.items()
            if name not in {"DJANGO_SETTINGS_MODULE", "PYTHONDEVMODE"}
        }
        return {
            **environment,
            "PYTHONPATH": os.pathsep.join(map(str, path)),
            "PYTHONUNBUFFERED": "1",
        }

    def wait_for_disconnection(self, databases):
        """Return how many connections there still are after a while."""
        if self.database.vendor == "sqlite":
            # Those of ended processes are gone.
            return 0
        server = servers.shared_server(self.database.vendor)
        names = []
        for database in databases.values():
            names += [database["NAME"], "test_%s" % database["NAME"]]
        deadline = time.monotonic() + EXIT_TIME
        while time.monotonic() < deadline:
            if not (count := sum(map(server.connection_count, names))):
                return 0
            time.sleep(0.1)
        return count


def describe_server(vendor):
    if vendor == "sqlite":
        import sqlite3

        return "SQLite %s" % sqlite3.sqlite_version
    ((version,),) = servers.shared_server(vendor).execute("SELECT version()")
    return version if vendor == "mysql" else " ".join(version.split()[:2])


def digest(*values):
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def digest_sources(directory, paths):
    """
    Return a digest of the names of Python files in a directory, and of what
    they do: neither comments nor docstrings count.
    """
    sources = []
    for path in sorted(paths):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, HAVE_DOCSTRINGS) and ast.get_docstring(node):
                del node.body[0]
        sources.append([str(path.relative_to(directory)), ast.dump(tree)])
    return digest(*sources)


# The difference between two runs.


def get_differences(baseline, result):
    """
    Return lines that say in what a run was worse than the baseline. There are
    none if the pool makes no difference.
    """
    lines = []
    for test, (before, reason_before) in sorted(baseline["outcomes"].items()):
        after, text = result["outcomes"].get(test, ("missing", ""))
        if test in NOT_COMPARED and after == "failed":
            continue
        if after == before or after in SUCCESSES:
            continue
        if before in {"failed", "error"} and after != "missing":
            continue
        lines.append("%s: %s, was %s" % (test, after, before))
        lines += ["    %s" % line for line in text.splitlines()]
    for test in sorted(result["outcomes"].keys() - baseline["outcomes"].keys()):
        # Tests that the patch adds, or errors of whole classes and modules.
        outcome, text = result["outcomes"][test]
        if outcome in {"failed", "error"}:
            lines.append("%s: %s, wasn't there" % (test, outcome))
            lines += ["    %s" % line for line in text.splitlines()]
    for name in ["left_connections", "connections_after_exit"]:
        if result[name] > baseline[name]:
            lines.append("%s: %d, was %d" % (name, result[name], baseline[name]))
    return lines


def count_outcomes(result):
    counts = {"run": 0, "passed": 0, "failed": 0, "skipped": 0}
    for outcome, _ in result["outcomes"].values():
        counts["run"] += 1
        if outcome in SUCCESSES:
            counts["passed"] += 1
        elif outcome == "skipped":
            counts["skipped"] += 1
        else:
            counts["failed"] += 1
    return counts


def print_result(title, result):
    print(
        "%s: {run} tests, {passed} passed, {failed} failed, {skipped} skipped in %d s"
        "".format(**count_outcomes(result)) % (title, result["seconds"]),
        flush=True,
    )


def get_report(baseline, result):
    """Return what there is to say of a comparison."""
    return {
        "what": result["what"],
        "django": result["version"],
        "python": result["python"],
        "server": result["server"],
        "date": result["date"],
        "seconds": result["seconds"],
        "baseline": count_outcomes(baseline),
        "with_pool": count_outcomes(result),
        "differences": get_differences(baseline, result),
    }


def leave_out_tracebacks(differences):
    """
    Return lines without those of tracebacks, which are about one machine, but
    the last: the exception.
    """
    return [
        line
        for line, following in itertools.zip_longest(differences, differences[1:])
        if not line.startswith(" ") or not (following or "").startswith(" ")
    ]
