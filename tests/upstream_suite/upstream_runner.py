"""
A test runner that records what became of each test, for comparing runs.
"""

import functools
import gc
import json
import os
import time
import unittest

from tblib import pickling_support

from django.db import connections
from django.test.runner import DiscoverRunner

# Parallel tests have it look at each exception class there is, those of all
# models too, for each class of tests: a good part of their time. Once will do.
pickling_support.install = functools.cache(pickling_support.install)

# From best to worst: a test may have several outcomes, by its subtests or by
# its tearDown().
OUTCOMES = ["passed", "expected failure", "skipped", "failed", "error"]

# Seconds. What was closed may take a moment to be gone from the server's list.
CLOSING_TIME = 5

COUNT_CONNECTIONS = {
    "postgresql": """
        SELECT count(*) FROM pg_stat_activity
        WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
    """,
    "mysql": """
        SELECT count(*) FROM information_schema.processlist
        WHERE id <> connection_id() AND user <> 'system user'
            AND command <> 'Daemon'
    """,
}


class RecordingRunner(DiscoverRunner):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # Lists of outcome and explanation, by the tests' ids.
        self.outcomes = {}
        self.left_connections = None

    def get_resultclass(self):
        outcomes = self.outcomes
        base = super().get_resultclass() or unittest.TextTestResult

        class RecordingResult(base):
            def record(self, test, outcome, text=""):
                known, _ = outcomes.get(test.id(), (OUTCOMES[0], ""))
                if OUTCOMES.index(outcome) >= OUTCOMES.index(known):
                    outcomes[test.id()] = [outcome, text]

            def addSuccess(self, test):
                super().addSuccess(test)
                self.record(test, "passed")

            def addFailure(self, test, err):
                super().addFailure(test, err)
                self.record(test, "failed", self.failures[-1][1])

            def addError(self, test, err):
                super().addError(test, err)
                self.record(test, "error", self.errors[-1][1])

            def addSkip(self, test, reason):
                super().addSkip(test, reason)
                self.record(test, "skipped", reason)

            def addExpectedFailure(self, test, err):
                super().addExpectedFailure(test, err)
                self.record(test, "expected failure")

            def addUnexpectedSuccess(self, test):
                super().addUnexpectedSuccess(test)
                self.record(test, "failed", "Unexpected success.")

            def addSubTest(self, test, subtest, err):
                super().addSubTest(test, subtest, err)
                if err is not None:
                    is_failure = issubclass(err[0], test.failureException)
                    problems = self.failures if is_failure else self.errors
                    self.record(
                        test, "failed" if is_failure else "error", problems[-1][1]
                    )

        return RecordingResult

    def run_suite(self, suite, **kwargs):
        # All that there is by now stays, and is much. The tests that collect
        # garbage, some hundreds, needn't look at it again and again.
        gc.collect()
        gc.freeze()
        return super().run_suite(suite, **kwargs)

    def teardown_databases(self, old_config, **kwargs):
        super().teardown_databases(old_config, **kwargs)
        deadline = time.monotonic() + CLOSING_TIME
        while (count := count_connections()) and time.monotonic() < deadline:
            time.sleep(0.05)
        self.left_connections = count

    def run_tests(self, *args, **kwargs):
        failures = super().run_tests(*args, **kwargs)
        # Written last: a run that ended before has no result.
        with open(os.environ["UPSTREAM_RESULT"], "w") as file:
            json.dump(
                {
                    "outcomes": self.outcomes,
                    "left_connections": self.left_connections,
                },
                file,
            )
        return failures


def count_connections():
    """Count the connections to the server, or files, that are still open."""
    connection = connections["default"]
    if connection.vendor == "sqlite":
        return count_open_files(os.environ["UPSTREAM_DIRECTORY"])
    with connection._nodb_cursor() as cursor:
        cursor.execute(COUNT_CONNECTIONS[connection.vendor])
        return cursor.fetchone()[0]


def count_open_files(directory):
    count = 0
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            path = os.readlink("/proc/self/fd/%s" % descriptor)
        except FileNotFoundError:
            # The descriptor by which they were listed.
            continue
        count += path.startswith(directory)
    return count
