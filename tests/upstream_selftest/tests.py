"""
Tests of what runs Django's own test suite: it must notice what pools break.
"""

import importlib.util
import tempfile
import unittest
from io import StringIO
from pathlib import Path
from unittest import mock

import upstream

from django.db.utils import ConnectionHandler
from django.test import SimpleTestCase


def make_result(left_connections=0, connections_after_exit=0, **outcomes):
    return {
        "outcomes": {
            "app.tests.Tests.%s" % name: [outcome, text]
            for name, (outcome, text) in outcomes.items()
        },
        "left_connections": left_connections,
        "connections_after_exit": connections_after_exit,
    }


PASSED = ("passed", "")


class DifferenceTests(SimpleTestCase):
    def assertDifferences(self, baseline, result, *differences):
        self.assertEqual(upstream.get_differences(baseline, result), [*differences])

    def test_same(self):
        result = make_result(
            1,
            test_a=PASSED,
            test_b=("skipped", "why"),
            test_c=("failed", "Traceback"),
            test_d=("expected failure", ""),
        )
        self.assertDifferences(result, result)

    def test_failed(self):
        for outcome in ["failed", "error"]:
            for before in [PASSED, ("skipped", "why"), ("expected failure", "")]:
                with self.subTest(outcome=outcome, before=before):
                    self.assertDifferences(
                        make_result(test_a=before),
                        make_result(test_a=(outcome, "Traceback\nValueError")),
                        "app.tests.Tests.test_a: %s, was %s" % (outcome, before[0]),
                        "    Traceback",
                        "    ValueError",
                    )

    def test_failed_before(self):
        self.assertDifferences(
            make_result(test_a=("failed", "one")), make_result(test_a=("error", "two"))
        )

    def test_skipped(self):
        self.assertDifferences(
            make_result(test_a=PASSED),
            make_result(test_a=("skipped", "Pools can't do that.")),
            "app.tests.Tests.test_a: skipped, was passed",
            "    Pools can't do that.",
        )

    def test_missing(self):
        for before in [PASSED, ("skipped", ""), ("failed", "")]:
            with self.subTest(before=before):
                self.assertDifferences(
                    make_result(test_a=before),
                    make_result(),
                    "app.tests.Tests.test_a: missing, was %s" % before[0],
                )

    def test_new(self):
        """The patch brings tests. Errors of whole classes are new as well."""
        self.assertDifferences(
            make_result(),
            make_result(
                test_a=PASSED, test_b=("skipped", ""), setUpClass=("error", "Why")
            ),
            "app.tests.Tests.setUpClass: error, wasn't there",
            "    Why",
        )

    def test_better(self):
        self.assertDifferences(
            make_result(test_a=("failed", "")), make_result(test_a=PASSED)
        )

    def test_not_compared(self):
        [test] = upstream.NOT_COMPARED
        baseline, failed, missing = make_result(), make_result(), make_result()
        baseline["outcomes"][test] = PASSED
        failed["outcomes"][test] = ("failed", "Traceback")
        self.assertDifferences(baseline, failed)
        self.assertDifferences(baseline, missing, "%s: missing, was passed" % test)
        failed["outcomes"][test] = ("skipped", "")
        self.assertDifferences(baseline, failed, "%s: skipped, was passed" % test)

    def test_without_tracebacks(self):
        failed = ("failed", "Traceback\n  File\nValueError")
        differences = upstream.get_differences(
            make_result(test_a=PASSED, test_b=PASSED, test_c=PASSED),
            make_result(1, test_a=failed, test_b=failed, test_c=("error", "Why")),
        )
        self.assertEqual(
            upstream.leave_out_tracebacks(differences),
            [
                "app.tests.Tests.test_a: failed, was passed",
                "    ValueError",
                "app.tests.Tests.test_b: failed, was passed",
                "    ValueError",
                "app.tests.Tests.test_c: error, was passed",
                "    Why",
                "left_connections: 1, was 0",
            ],
        )

    def test_connections(self):
        self.assertDifferences(
            make_result(left_connections=1),
            make_result(left_connections=3, connections_after_exit=2),
            "left_connections: 3, was 1",
            "connections_after_exit: 2, was 0",
        )


class SkippedByOrderTests(SimpleTestCase):
    def get_run(self, *results):
        """Return a run that has these results, and a list of its arguments."""
        run = upstream.Run("6.1", upstream.OVERLAY, "test_sqlite", True, ["label"])
        results, calls, paths = list(results), [], []

        def run_once(arguments, directory, path):
            calls.append(arguments)
            paths.append([directory, *path])
            self.assertEqual(paths[-1], paths[0])
            return results.pop(0)

        directory = Path(self.enterContext(tempfile.TemporaryDirectory()))
        for target, name, value in [
            (run, "run_once", run_once),
            (run, "get_tree", lambda: directory / "tree"),
            # Each call would return another one, of what there is by then.
            (run, "stage", lambda directory: tempfile.mkdtemp(dir=directory)),
            (upstream.Run, "what", "what"),
            (upstream, "RESULTS", directory / "results"),
        ]:
            self.enterContext(mock.patch.object(target, name, value))
        return run, calls

    def test_reasons(self):
        """They are those that Django has for databases in memory alone."""
        directory = self.enterContext(tempfile.TemporaryDirectory())
        reasons = []
        for name in [":memory:", Path(directory) / "file.sqlite3"]:
            database = {"ENGINE": "django.db.backends.sqlite3", "NAME": name}
            connection = ConnectionHandler({"default": database})["default"]
            self.addCleanup(connection.close)
            reasons.append(set(connection.features.django_test_skips))
        self.assertEqual(reasons[0] - reasons[1], upstream.SKIPPED_BY_ORDER)

    def test_run_again(self):
        """They run first in a process. What they leave there doesn't count."""
        for reason in upstream.SKIPPED_BY_ORDER:
            for outcome in [PASSED, ("failed", "Why")]:
                with self.subTest(reason=reason, outcome=outcome):
                    result = make_result(
                        test_a=PASSED,
                        test_b=("skipped", "why"),
                        test_c=("skipped", reason),
                        test_d=("failed", reason),
                    )
                    run, calls = self.get_run(result, make_result(1, test_c=outcome))
                    result = run.run()
                    again = calls[1]
                    self.assertEqual(calls[0], ["label"])
                    self.assertEqual(again[-1], "app.tests.Tests.test_c")
                    self.assertEqual([a for a in again if a[0] != "-"], again[-1:])
                    self.assertEqual(
                        result["outcomes"],
                        make_result(
                            test_a=PASSED,
                            test_b=("skipped", "why"),
                            test_c=outcome,
                            test_d=("failed", reason),
                        )["outcomes"],
                    )
                    self.assertEqual(result["left_connections"], 0)
                    self.assertEqual(run.get_result(), result)

    def test_nothing_to_run_again(self):
        run, calls = self.get_run(make_result(test_a=PASSED, test_b=("skipped", "")))
        run.run()
        self.assertEqual(calls, [["label"]])

    def test_not_ended(self):
        """A run without an end has no result that is kept."""
        reason = min(upstream.SKIPPED_BY_ORDER)
        run, _ = self.get_run(make_result(test_a=("skipped", reason)), None)
        self.assertIsNone(run.run())
        self.assertIsNone(run.get_result())


class RecorderTests(SimpleTestCase):
    def test_outcomes(self):
        path = upstream.HARNESS / "upstream_runner.py"
        spec = importlib.util.spec_from_file_location("upstream_runner", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)

        class Tests(unittest.TestCase):
            def tearDown(self):
                if self._testMethodName == "test_torn_down":
                    raise ValueError

            def test_passed(self):
                pass

            def test_torn_down(self):
                pass

            def test_failed(self):
                self.fail("Why")

            def test_error(self):
                raise ValueError

            def test_skipped(self):
                self.skipTest("Why")

            def test_subtests(self):
                for number in range(3):
                    with self.subTest(number=number):
                        self.assertNotEqual(number, 1)

            @unittest.expectedFailure
            def test_expected_failure(self):
                self.fail()

            @unittest.expectedFailure
            def test_unexpected_success(self):
                pass

        runner = module.RecordingRunner()
        unittest.TextTestRunner(
            stream=StringIO(), resultclass=runner.get_resultclass()
        ).run(unittest.defaultTestLoader.loadTestsFromTestCase(Tests))
        outcomes = {
            test.rpartition(".")[2]: outcome
            for test, (outcome, _) in runner.outcomes.items()
        }
        self.assertEqual(
            outcomes,
            {
                "test_passed": "passed",
                "test_torn_down": "error",
                "test_failed": "failed",
                "test_error": "error",
                "test_skipped": "skipped",
                "test_subtests": "failed",
                "test_expected_failure": "expected failure",
                "test_unexpected_success": "failed",
            },
        )


class DigestTests(SimpleTestCase):
    def digest(self, source):
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "module.py"
            path.write_text(source)
            return upstream.digest_sources(Path(directory), [path])

    def test_sources(self):
        digest = self.digest('"""Doc."""\ndef f():\n    return 1\n')
        same = '"""Other."""\n\n# Comment.\ndef f():\n    """Doc."""\n    return (1)\n'
        self.assertEqual(self.digest(same), digest)
        self.assertNotEqual(self.digest("def f():\n    return 2\n"), digest)
        self.assertNotEqual(self.digest("def f():\n    return '1'\n"), digest)
