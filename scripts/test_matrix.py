#!/usr/bin/env python3
"""
Run the tests with every supported Django, in both legs, on every database.

The last line is the sum: "N passed, N failed, N skipped". Only the standard
library is needed, environments.py makes the rest.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor

import environments

LEGS = ["overlay", "patched"]
DATABASES = ["sqlite", "postgresql", "mysql"]
# Which of Django's drivers for PostgreSQL it is concerns a few lines, the same
# in both legs and for all versions.
PSYCOPG2 = ("6.1", "overlay")

Result = namedtuple("Result", ["passed", "failed", "skipped", "note"])

# Seconds between asking a run to end and killing it.
GRACE = 20

# Runs that haven't ended, for when this one is interrupted.
running = set()


def run_and_show(command, timeout, show):
    """
    Run a command, passing the lines of its output to show() as they come.
    Return the output, the exit status and whether the command took too long.
    """
    process = subprocess.Popen(
        command,
        cwd=environments.ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        # For ending its children along with it.
        start_new_session=True,
    )
    running.add(process)
    timed_out = threading.Event()

    def end():
        timed_out.set()
        # runtests.py shows all stacks.
        kill_group(process, signal.SIGUSR1)
        time.sleep(1)
        kill_group(process, signal.SIGTERM)
        time.sleep(GRACE)
        kill_group(process, signal.SIGKILL)

    timer = threading.Timer(timeout, end)
    timer.daemon = True
    timer.start()
    lines = []
    try:
        for line in process.stdout:
            show(line)
            lines.append(line)
        process.wait()
    finally:
        running.discard(process)
        timer.cancel()
        process.stdout.close()
    return "".join(lines), process.returncode, timed_out.is_set()


def kill_group(process, number):
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass


def parse(output, status):
    """Return the Result that runtests.py printed."""
    counts = re.findall(
        r"^Result: passed=(\d+) failed=(\d+) skipped=(\d+)$", output, re.M
    )
    if not counts:
        return Result(0, 1, 0, "exit status %s, no result" % status)
    result = Result(*map(int, counts[-1]), "")
    if result.passed + result.failed + result.skipped == 0:
        return result._replace(failed=1, note="no tests")
    if status and not result.failed:
        return result._replace(failed=1, note="exit status %s" % status)
    return result


def write(text):
    sys.stdout.write(text)
    sys.stdout.flush()


def run_cell(python, leg, database, options, show):
    command = [python, "runtests.py", "--settings=test_%s" % database, "--noinput"]
    if leg == "patched":
        command.append("--patched")
    started = time.monotonic()
    output, status, timed_out = run_and_show(
        [*command, *options.labels], options.timeout, show
    )
    result = parse(output, status)
    if timed_out:
        note = "ended after %d seconds" % options.timeout
        result = result._replace(failed=max(1, result.failed), note=note)
    elif not result.note:
        result = result._replace(note="%.0f s" % (time.monotonic() - started))
    return result


def run_cells(cells, pythons, options):
    """
    Run cells, several at a time if so wanted, and return their results. The
    output of one at a time is shown: as it comes, or when the cell has ended.
    """

    def run(cell):
        title = "\n=== %s " % ("Django %s, %s, %s" % cell)
        lines = []
        show = write if options.jobs == 1 else lines.append
        show(title.ljust(80, "=") + "\n")
        result = run_cell(pythons[cell[0]], *cell[1:], options, show)
        # One call, for the output of another may end at the same time.
        write("".join(lines))
        return result

    with ThreadPoolExecutor(options.jobs) as executor:
        try:
            return dict(zip(cells, executor.map(run, cells)))
        except BaseException:
            # E.g. Ctrl+C: the runs, in sessions of their own, don't see it.
            executor.shutdown(wait=False, cancel_futures=True)
            for process in list(running):
                kill_group(process, signal.SIGTERM)
            raise


def get_databases(version, leg):
    return [*DATABASES, "psycopg2"] if (version, leg) == PSYCOPG2 else DATABASES


def print_title(title):
    print("\n=== %s %s" % (title, "=" * (74 - len(title))), flush=True)


def print_summary(results):
    print_title("Summary")
    print("%-7s %-8s %-11s passed  failed  skipped" % ("Django", "", ""))
    for (version, leg, database), result in results.items():
        print(
            "%-7s %-8s %-11s %6d %7d %8d  %s"
            % (
                version,
                leg,
                database,
                result.passed,
                result.failed,
                result.skipped,
                result.note,
            )
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("labels", nargs="*", help="test labels for runtests.py")
    parser.add_argument(
        "--django",
        action="append",
        choices=list(environments.DJANGO_PYTHONS),
        help="test this version only; may be repeated",
    )
    parser.add_argument(
        "--database",
        action="append",
        choices=[*DATABASES, "psycopg2", "oracle"],
        help="test this database only; may be repeated",
    )
    parser.add_argument("--leg", choices=LEGS, help="test this leg only")
    parser.add_argument(
        "--require-all",
        action="store_true",
        help="fail when a Python is missing, instead of testing without",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=20 * 60,
        help="seconds for one version on one database (default: %(default)s)",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=os.cpu_count() or 1,
        help="runs at the same time (default: %(default)s, one for each core)",
    )
    options = parser.parse_args()

    results, pythons = {}, {}
    for version in options.django or environments.DJANGO_PYTHONS:
        try:
            pythons[version] = environments.ensure("django-%s" % version)
        except environments.EnvironmentFailure as exc:
            print_title("Django %s" % version)
            print("Not tested: %s" % exc)
            if options.require_all:
                results[version, "", ""] = Result(0, 1, 0, "no environment")
    cells = [
        (version, leg, database)
        for version in pythons
        for leg in ([options.leg] if options.leg else LEGS)
        for database in options.database or get_databases(version, leg)
    ]
    results |= run_cells(cells, pythons, options)
    missing = set(options.django or environments.DJANGO_PYTHONS) - set(pythons)

    print_summary(results)
    if missing:
        print("Not tested, see above: Django %s" % ", ".join(sorted(missing)))
    passed = sum(result.passed for result in results.values())
    failed = sum(result.failed for result in results.values())
    skipped = sum(result.skipped for result in results.values())
    print("%d passed, %d failed, %d skipped" % (passed, failed, skipped), flush=True)
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
