#!/usr/bin/env python
"""
Run the tests, with the options of Django's own tests/runtests.py.

Tests are in random order and warnings are errors. Examples:

    ./runtests.py
    ./runtests.py --settings=test_postgresql db_pool
    ./runtests.py --settings=test_mysql db_pool.test_core.CoreTests.test_lifo
    ./runtests.py --patched db_pool

The last one runs the tests on Django's source tree with the patches applied.

    ./runtests.py --upstream --settings=test_postgresql transactions
    ./runtests.py --upstream --baseline --settings=test_mysql --parallel=2

run Django's own test suite with POOL in every alias. With --baseline they tell
what the pool makes of it: the difference to Django without, which should be
empty.
"""

import argparse
import atexit
import copy
import faulthandler
import gc
import json
import logging
import multiprocessing
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
import unittest
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "tests"))

import suite  # NOQA: E402

try:
    import django
except ImportError as e:
    raise RuntimeError(
        "Django isn't installed. 'make test' sets everything up by itself."
    ) from e

suite.add_to_sys_path()

from django.conf import settings  # NOQA: E402
from django.db import connection, connections  # NOQA: E402
from django.test import TestCase, TransactionTestCase  # NOQA: E402
from django.test.runner import get_max_test_processes, parallel_type  # NOQA: E402
from django.test.utils import NullTimeKeeper, TimeKeeper, get_runner  # NOQA: E402
from django.utils.functional import classproperty  # NOQA: E402
from django.utils.log import DEFAULT_LOGGING  # NOQA: E402

# Warnings are errors, so that no use of error prone or deprecated features is
# added. This includes Django's own RemovedIn... warnings.
warnings.simplefilter("error", ResourceWarning)
warnings.simplefilter("error", RuntimeWarning)
warnings.simplefilter("error", DeprecationWarning)
warnings.simplefilter("error", PendingDeprecationWarning)
# Neither Django nor asgiref are within reach of the tests: older releases run
# on a newer Python than that which deprecated what they use.
for package in ["asgiref", "django"]:
    warnings.filterwarnings(
        "ignore",
        r"'?asyncio\.",
        category=DeprecationWarning,
        module=r"%s\." % package,
    )
warnings.filterwarnings(
    "ignore", r".*use of fork\(\) may lead to deadlocks", category=DeprecationWarning
)
try:
    import MySQLdb
except ImportError:
    pass
else:
    # Ignore informational warnings from QuerySet.explain().
    warnings.filterwarnings("ignore", r"\(1003, *", category=MySQLdb.Warning)

# Names the file which collects errors that no test would notice, from all
# processes of a run.
STRAY_ERRORS = "POOL_TEST_STRAY_ERRORS"


def record_stray_error(kind, text):
    # Shown at once too: what is printed around it may tell where it is from.
    message = "\n***** %s\n%s\n" % (kind, text.rstrip())
    sys.stderr.write(message)
    try:
        with open(os.environ[STRAY_ERRORS], "a") as file:
            file.write(message)
    except OSError:
        # The directory is gone because the run is over.
        pass


class StrayErrorHandler(logging.Handler):
    """Record asyncio's "Task exception was never retrieved" and the like."""

    def emit(self, record):
        record_stray_error("asyncio reported an error", self.format(record))


def watch_for_stray_errors():
    """
    Record exceptions in finalizers and threads, and what asyncio merely logs.
    A warning that became an error within a __del__() is among them.
    """

    def unraisable_hook(args):
        record_stray_error(
            "%s: %r" % (args.err_msg or "Exception ignored in", args.object),
            "".join(
                traceback.format_exception(
                    args.exc_type, args.exc_value, args.exc_traceback
                )
            ),
        )

    def threading_hook(args):
        if args.exc_type is SystemExit:
            return
        record_stray_error(
            "Exception in thread %s" % getattr(args.thread, "name", None),
            "".join(
                traceback.format_exception(
                    args.exc_type, args.exc_value, args.exc_traceback
                )
            ),
        )

    sys.unraisablehook = unraisable_hook
    threading.excepthook = threading_hook
    logging.getLogger("asyncio").addHandler(StrayErrorHandler(logging.ERROR))


def get_selected_apps(test_labels, start_at, start_after):
    """Return the test apps that the labels and options select."""
    test_apps = suite.get_test_apps()
    labelled = {label.split(".")[0] for label in test_labels}
    if unknown := labelled.difference(test_apps):
        raise RuntimeError(
            "No such test apps: %s. There are: %s."
            % (", ".join(sorted(unknown)), ", ".join(test_apps))
        )
    if labelled:
        return sorted(labelled)
    for option, label in [("--start-at", start_at), ("--start-after", start_after)]:
        if label:
            if label not in test_apps:
                raise RuntimeError("%s: no such test app: %s." % (option, label))
            first = test_apps.index(label) + (option == "--start-after")
            return test_apps[first:]
    return test_apps


def setup_run_tests(verbosity, test_apps):
    """
    Set up Django with the test apps. Runs in the main process, and again in
    those worker processes that weren't forked from it.
    """
    watch_for_stray_errors()
    settings.INSTALLED_APPS = [*suite.get_always_installed_apps(), *test_apps]
    settings.STATIC_ROOT = os.path.join(tempfile.gettempdir(), "static")
    log_config = copy.deepcopy(DEFAULT_LOGGING)
    # Filter out non-error logging so that not every test has to capture it.
    log_config["loggers"]["django"]["level"] = "ERROR"
    settings.LOGGING = log_config
    if verbosity >= 2:
        for app in settings.INSTALLED_APPS:
            print("Importing application %s" % app)
    django.setup()

    # As in Django's own suite, where the tests of the overlay will belong.
    def no_available_apps(cls):
        raise Exception(
            "Please define available_apps in TransactionTestCase and its subclasses."
        )

    TransactionTestCase.available_apps = classproperty(no_available_apps)
    TestCase.available_apps = None


def describe_database():
    if connection.vendor == "sqlite":
        return "SQLite %s" % connection.Database.sqlite_version
    if connection.vendor == "oracle":
        return "Oracle at %s" % connection.settings_dict["NAME"]
    import servers

    # Not through Django: the database named in settings needn't exist.
    ((version,),) = servers.shared_server(connection.vendor).execute("SELECT version()")
    if connection.vendor == "mysql":
        return "MySQL or MariaDB %s" % version
    return " ".join(version.split()[:2])


def print_header(parallel):
    pool = connection.settings_dict.get("POOL", False)
    print(
        "Testing the %s leg: Django %s from %s"
        % (suite.get_leg(), django.get_version(), os.path.dirname(django.__file__))
    )
    print(
        "Python %s, %s, driver %s %s, POOL=%r, %s"
        % (
            platform.python_version(),
            describe_database(),
            connection.Database.__name__,
            getattr(connection.Database, "__version__", ""),
            pool,
            "up to %d processes" % parallel if parallel > 1 else "one process",
        )
    )


def can_run_in_parallel():
    if connection.vendor == "sqlite" and multiprocessing.get_start_method() != "fork":
        # Django copies the databases into memory then, which bypasses pools.
        return False
    return all(conn.features.can_clone_databases for conn in connections.all())


def get_counting_runner(runner_class):
    """
    Return a subclass of a test runner that counts the tests which passed. The
    number of tests that unittest shows includes the skipped ones or not,
    depending on the version of Python.
    """

    class CountingRunner(runner_class):
        passed = failed = skipped = 0

        def get_resultclass(self):
            runner = self

            class CountingResult(super().get_resultclass() or unittest.TextTestResult):
                def addSuccess(self, test):
                    super().addSuccess(test)
                    runner.passed += 1

                def addExpectedFailure(self, test, err):
                    super().addExpectedFailure(test, err)
                    runner.passed += 1

            return CountingResult

        def suite_result(self, suite, result, **kwargs):
            failures = super().suite_result(suite, result, **kwargs)
            self.failed += failures
            self.skipped += len(result.skipped)
            return failures

    return CountingRunner


def run_tests(options):
    """Run the selected tests here, return the number of failures."""
    test_apps = get_selected_apps(
        options.modules, options.start_at, options.start_after
    )
    process_setup_args = (options.verbosity, test_apps)
    setup_run_tests(*process_setup_args)

    parallel = options.parallel
    if parallel in {0, "auto"}:
        parallel = get_max_test_processes()
    if parallel > 1 and not can_run_in_parallel():
        parallel = 1
    if options.verbosity >= 1:
        print_header(parallel)
        if options.shuffle is not False:
            print("Random order: repeat it with --shuffle=%d" % options.shuffle)
        sys.stdout.flush()

    if not hasattr(settings, "TEST_RUNNER"):
        settings.TEST_RUNNER = "django.test.runner.DiscoverRunner"
    runner_class = get_runner(settings)
    runner_class.parallel_test_suite.process_setup = setup_run_tests
    runner_class.parallel_test_suite.process_setup_args = process_setup_args
    runner = get_counting_runner(runner_class)(
        verbosity=options.verbosity,
        interactive=options.interactive,
        failfast=options.failfast,
        keepdb=options.keepdb,
        reverse=options.reverse,
        debug_sql=options.debug_sql,
        parallel=parallel,
        tags=options.tags,
        exclude_tags=options.exclude_tags,
        test_name_patterns=options.test_name_patterns,
        pdb=options.pdb,
        buffer=options.buffer,
        timing=options.timing,
        shuffle=options.shuffle,
        durations=options.durations,
    )
    failures = runner.run_tests(options.modules or test_apps)
    stray_errors = report_stray_errors()
    if options.verbosity >= 1:
        # For scripts/test_matrix.py.
        print(
            "Result: passed=%d failed=%d skipped=%d"
            % (runner.passed, runner.failed + stray_errors, runner.skipped)
        )
    return failures + stray_errors


def report_stray_errors():
    # What is left in reference cycles shall complain before the run is over.
    gc.collect()
    try:
        errors = Path(os.environ[STRAY_ERRORS]).read_text()
    except FileNotFoundError:
        return 0
    count = errors.count("\n***** ")
    print("\n%d errors outside of the tests' control:" % count, file=sys.stderr)
    print(errors, file=sys.stderr)
    return count


def run_upstream(options):
    """
    Run Django's own tests in a process of its own. Return whether all passed,
    or whether the pool made no difference.
    """
    import upstream

    if options.settings not in upstream.DATABASES:
        sys.exit(
            "Django's own tests can be run with --settings=%s."
            % ", ".join(upstream.DATABASES)
        )
    pool = json.loads(os.environ.get("POOL_TEST_OPTIONS", "true"))
    leg = upstream.PATCHED if options.patched else upstream.OVERLAY
    run = upstream.Run(
        django.get_version(),
        leg,
        options.settings,
        pool,
        get_upstream_args(options),
        options.start_method,
    )
    if not options.baseline:
        if (result := run.run()) is None:
            return False
        upstream.print_result(run, result)
        return not upstream.count_outcomes(result)["failed"]
    baseline_run = run.get_baseline()
    if (baseline := baseline_run.get_result() or baseline_run.run()) is None:
        return False
    if (result := run.run()) is None:
        return False
    report = upstream.get_report(baseline, result)
    if options.report:
        brief = upstream.leave_out_tracebacks(report["differences"])
        Path(options.report).write_text(json.dumps({**report, "differences": brief}))
    upstream.print_result(baseline_run, baseline)
    upstream.print_result(run, result)
    print("Difference: %s" % ("" if report["differences"] else "none."))
    print("\n".join(report["differences"]))
    return not report["differences"]


def get_upstream_args(options):
    """Return the arguments for Django's runtests.py."""
    args = ["--noinput", "--verbosity=%d" % options.verbosity]
    args.append("--parallel=%s" % options.parallel)
    for name in ["failfast", "keepdb", "reverse", "debug_sql", "buffer", "timing"]:
        if getattr(options, name):
            args.append("--%s" % name.replace("_", "-"))
    for name in ["bisect", "pair", "shuffle", "start_after", "start_at", "durations"]:
        # Unlike the tests here, Django's are only shuffled on demand.
        value = getattr(options, name)
        # Zero is a value: all durations, or a seed.
        if value is not None and value is not False:
            args.append("--%s=%s" % (name.replace("_", "-"), value))
    for name, values in [
        ("--tag", options.tags),
        ("--exclude-tag", options.exclude_tags),
        ("-k", options.test_name_patterns),
    ]:
        for value in values or []:
            args += [name, value]
    return [*args, *options.modules]


def get_subprocess_args(options):
    """Return the command that runs labels as this process was told to."""
    args = [
        sys.executable,
        __file__,
        "--settings=%s" % options.settings,
        "--verbosity=%d" % options.verbosity,
        "--parallel=1",
    ]
    if options.failfast:
        args.append("--failfast")
    if not options.interactive:
        args.append("--noinput")
    for tag in options.tags or []:
        args.append("--tag=%s" % tag)
    for tag in options.exclude_tags or []:
        args.append("--exclude-tag=%s" % tag)
    # A different order in each pass would make the passes incomparable.
    args.append("--shuffle=%d" % options.shuffle)
    return args


def run_subprocess(args, labels):
    """Run labels in a child process, return whether they all passed."""
    print("***** Test labels: %s" % " ".join(labels), flush=True)
    return subprocess.run([*args, *labels]).returncode == 0


def get_companions(label, options):
    """Return what to combine a label with in order to make it fail."""
    companions = options.modules or get_selected_apps(
        [], options.start_at, options.start_after
    )
    return [companion for companion in companions if companion != label]


def bisect_tests(label, options):
    """
    Find the one test label that makes another one fail, by halving.
    """
    # Whatever they share, e.g. a database server, is started only once.
    settings.DATABASES
    args = get_subprocess_args(options)
    suspects = get_companions(label, options)
    print("***** Bisecting test suite: %s" % " ".join(suspects))
    iteration = 0
    while len(suspects) > 1:
        iteration += 1
        middle = len(suspects) // 2
        halves = suspects[:middle], suspects[middle:]
        guilty = []
        for name, half in zip(["first", "second"], halves):
            print("***** Pass %d: running the %s half" % (iteration, name))
            if not run_subprocess(args, [*half, label]):
                guilty.append(half)
        if len(guilty) == 2:
            print("***** Multiple sources of failure found")
            return
        if not guilty:
            print("***** No source of failure found... try pair execution (--pair)")
            return
        (suspects,) = guilty
    for suspect in suspects:
        print("***** Source of error: %s" % suspect)


def paired_tests(label, options):
    """Find a test label that makes another one fail, one by one."""
    settings.DATABASES
    args = get_subprocess_args(options)
    companions = get_companions(label, options)
    print("***** Trying paired execution")
    for number, companion in enumerate(companions, start=1):
        print(
            "***** %d of %d: Check test pairing with %s"
            % (number, len(companions), companion)
        )
        if not run_subprocess(args, [companion, label]):
            print("***** Found problem pair with %s" % companion)
            return
    print("***** No problem pair found")


def get_parser():
    parser = argparse.ArgumentParser(
        description="Run the test suite of django-pool-patch."
    )
    parser.add_argument(
        "modules",
        nargs="*",
        metavar="module",
        help='Optional test labels; e.g. "db_pool" or '
        '"db_pool.test_core.CoreTests.test_lifo".',
    )
    parser.add_argument(
        "--patched",
        action="store_true",
        help="Test Django's source tree with the patches applied, rather than the "
        "overlay on the Django that is installed.",
    )
    parser.add_argument(
        "--upstream",
        action="store_true",
        help="Run Django's own test suite, from its source tree, with POOL in every "
        "alias. POOL_TEST_OPTIONS, in JSON, is what POOL is; the default is true.",
    )
    parser.add_argument(
        "--baseline",
        action="store_true",
        help="Of --upstream: report the difference to a run without the pool. That "
        "run is made first, unless its result is known. Exit with 0 only if there's "
        "no difference.",
    )
    parser.add_argument(
        "--start-method",
        choices=multiprocessing.get_all_start_methods(),
        default="fork",
        help="Of --upstream: how to start parallel processes (default: fork).",
    )
    parser.add_argument(
        "--report",
        metavar="PATH",
        help="Of --baseline: write what was found to a file, in JSON.",
    )
    parser.add_argument(
        "-v",
        "--verbosity",
        default=1,
        type=int,
        choices=[0, 1, 2, 3],
        help="Verbosity level; 0=minimal output, 1=normal output, 2=all output",
    )
    parser.add_argument(
        "--noinput",
        action="store_false",
        dest="interactive",
        help="Tells Django to NOT prompt the user for input of any kind.",
    )
    parser.add_argument(
        "--failfast",
        action="store_true",
        help="Tells Django to stop running the test suite after first failed test.",
    )
    parser.add_argument(
        "--keepdb",
        action="store_true",
        help="Tells Django to preserve the test database between runs. Of use "
        "only for a server that isn't started by this run.",
    )
    parser.add_argument(
        "--settings",
        help="Python path to settings module: test_sqlite, test_postgresql, "
        "test_mysql, test_oracle or one of your own. If this isn't provided, "
        "either the DJANGO_SETTINGS_MODULE environment variable or "
        '"test_sqlite" will be used.',
    )
    parser.add_argument(
        "--bisect",
        metavar="LABEL",
        help="Bisect the test suite to discover a test that causes a test "
        "failure when combined with the named test.",
    )
    parser.add_argument(
        "--pair",
        metavar="LABEL",
        help="Run the test suite in pairs with the named test to find problem pairs.",
    )
    parser.add_argument(
        "--shuffle",
        nargs="?",
        default=None,
        type=int,
        metavar="SEED",
        help="Run test cases in the random order of this seed. Unlike in Django, "
        "the order is random by default.",
    )
    parser.add_argument(
        "--no-shuffle",
        action="store_const",
        const=False,
        dest="shuffle",
        help="Don't run test cases in random order.",
    )
    parser.add_argument(
        "--reverse",
        action="store_true",
        help="Sort test suites and test cases in opposite order to debug "
        "test side effects not apparent with normal execution lineup.",
    )
    parser.add_argument(
        "--debug-sql",
        action="store_true",
        help="Turn on the SQL query logger within tests.",
    )
    parser.add_argument(
        "--parallel",
        nargs="?",
        const="auto",
        # Unlike in Django: many of these tests measure time.
        default=1,
        type=parallel_type,
        metavar="N",
        help='Run tests using up to N parallel processes. Use the value "auto" '
        "to run one test process for each processor core. The default is 1.",
    )
    parser.add_argument(
        "--tag",
        dest="tags",
        action="append",
        help="Run only tests with the specified tags. Can be used multiple times.",
    )
    parser.add_argument(
        "--exclude-tag",
        dest="exclude_tags",
        action="append",
        help="Do not run tests with the specified tag. Can be used multiple times.",
    )
    parser.add_argument(
        "--start-after",
        help="Run tests starting after the specified top-level module.",
    )
    parser.add_argument(
        "--start-at",
        help="Run tests starting at the specified top-level module.",
    )
    parser.add_argument(
        "--pdb", action="store_true", help="Runs the PDB debugger on error or failure."
    )
    parser.add_argument(
        "-b",
        "--buffer",
        action="store_true",
        help="Discard output of passing tests.",
    )
    parser.add_argument(
        "--timing",
        action="store_true",
        help="Output timings, including database set up and total run time.",
    )
    parser.add_argument(
        "-k",
        dest="test_name_patterns",
        action="append",
        help="Only run test methods and classes matching test name pattern. "
        "Same as unittest -k option. Can be used multiple times.",
    )
    parser.add_argument(
        "--durations",
        type=int,
        default=None,
        metavar="N",
        help="Show the N slowest test cases (N=0 for all).",
    )
    return parser


def parse_options():
    parser = get_parser()
    options = parser.parse_args()
    selections = [options.start_at, options.start_after, options.modules]
    if sum(bool(selection) for selection in selections) > 1:
        parser.error(
            "--start-at, --start-after, and test labels are mutually exclusive."
        )
    if options.baseline and not options.upstream:
        parser.error("--baseline is an option of --upstream.")
    if not options.settings:
        options.settings = os.environ.get("DJANGO_SETTINGS_MODULE", "test_sqlite")
    if options.upstream:
        # The labels are Django's.
        return options
    try:
        options.modules = [suite.get_dotted_label(label) for label in options.modules]
        for name in ["start_at", "start_after"]:
            if label := getattr(options, name):
                setattr(options, name, suite.get_dotted_label(label))
        get_selected_apps(options.modules, options.start_at, options.start_after)
    except RuntimeError as exc:
        parser.error(str(exc))
    if options.shuffle is None:
        # The range that Django draws from.
        options.shuffle = random.SystemRandom().randint(0, 10**10 - 1)
    return options


def prepare_process(options):
    """Set up what all processes of this run share."""
    os.environ["DJANGO_SETTINGS_MODULE"] = options.settings
    # kill's default signal shall stop the database server too. Tests can't
    # take a KeyboardInterrupt for their own error.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # For finding out where a run hangs.
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    directory = tempfile.mkdtemp(prefix="pool-tests-")
    atexit.register(remove_directory, directory, os.getpid())
    if os.geteuid() == 0:
        # Database servers run as other users, with their files below it.
        os.chmod(directory, 0o711)
    # Children inherit the variables.
    tempfile.tempdir = os.environ["TMPDIR"] = directory
    os.environ[STRAY_ERRORS] = os.path.join(directory, "stray-errors")


def remove_directory(directory, owner_pid):
    # The copies of this process that fork makes mustn't clean up for it.
    if os.getpid() == owner_pid:
        shutil.rmtree(directory, ignore_errors=True)


def run_patched():
    """Start again with Django's patched source tree. Doesn't return."""
    import sdists

    tree = sdists.ensure_patched(django.get_version())
    path = [str(tree), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    print("Using %s" % tree, flush=True)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def main():
    if "PYTHONDEVMODE" not in os.environ:
        # Development mode can't be switched on later. An empty PYTHONDEVMODE
        # keeps it off.
        os.environ["PYTHONDEVMODE"] = "1"
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    options = parse_options()
    if options.patched and not options.upstream and suite.get_leg() != "patched":
        run_patched()
    prepare_process(options)
    if options.upstream:
        if not run_upstream(options):
            sys.exit(1)
    elif options.bisect:
        bisect_tests(suite.get_dotted_label(options.bisect), options)
    elif options.pair:
        paired_tests(suite.get_dotted_label(options.pair), options)
    else:
        time_keeper = TimeKeeper() if options.timing else NullTimeKeeper()
        with time_keeper.timed("Total run"):
            failures = run_tests(options)
        time_keeper.print_results()
        if failures:
            sys.exit(1)


if __name__ == "__main__":
    main()
