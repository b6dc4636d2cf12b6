#!/usr/bin/env python3
"""
Run Django's own test suite with and without the pool, for every supported
Django on every database and in both legs, and write docs/upstream-suite.md.

What was found for a cell is kept in docs/upstream-suite.json, by a digest of
what was tested. Cells that are known aren't run again, so that the matrix can
be finished in several goes, and the page says which are stale or missing.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import environments
import test_matrix

RESULTS = environments.ROOT / "docs" / "upstream-suite.json"
PAGE = environments.ROOT / "docs" / "upstream-suite.md"

DATABASES = {"sqlite": "SQLite file", "postgresql": "PostgreSQL", "mysql": "MariaDB"}
GIS_DATABASES = {
    "postgis": "PostGIS",
    "spatialite": "SpatiaLite file",
    "mysqlgis": "MariaDB (GIS)",
}
NEWEST = "6.1"

# The part of the suite that runs each time: what connects, lends and returns,
# and what is likely to stumble over that.
QUICK_LABELS = """
    asgi async backends basic check_framework db_utils delete handlers inspectdb
    introspection migrate_signals migrations model_inheritance_regress
    multiple_database postgres_tests queries raw_query schema select_for_update
    servers sessions_tests test_client test_runner test_utils timezones
    transaction_hooks transactions
""".split()

TITLE = """\
# Django's own test suite with the pool

Each cell is a run of Django's test suite, the whole of it unless a part is named, by
`--parallel=2`, with the POOL given in every alias (`false`: this package without a
pool). It's compared to a run of the suite as published, without POOL and without this
package, on the same Python and server. The runs compared to it have the tests that
the patches add and edit. A difference is a test that fails, is skipped or is missing
only with the pool, or a server connection that only then is left over. Not compared is
one test that is about time: `NOT_COMPARED` in `tests/upstream.py`.

`make upstream` runs what is missing or stale and writes this page.
"""


class Cell(namedtuple("Cell", ["version", "database", "leg", "pool", "labels"])):
    """One run that is compared. pool is POOL in JSON."""

    @property
    def name(self):
        return " ".join([*self[:4], *self.labels])

    @property
    def environment(self):
        """Return the name of the virtual environment to run in."""
        kind = "spatialite" if self.database == "spatialite" else "django"
        return "%s-%s" % (kind, self.version)

    @property
    def command(self):
        command = ["runtests.py", "--upstream", "--baseline", "--noinput"]
        command += ["--settings=test_%s" % self.database, "--parallel=2"]
        if self.leg == "patched":
            command.append("--patched")
        return [*command, *self.labels]

    def run(self, python, report=None, output=None):
        environment = {**os.environ, "POOL_TEST_OPTIONS": self.pool}
        command = [python, *self.command]
        if report is not None:
            command.append("--report=%s" % report)
        process = subprocess.run(
            command,
            cwd=environments.ROOT,
            env=environment,
            stdout=output,
            stderr=None if output is None else subprocess.STDOUT,
        )
        return process.returncode

    def get_what(self, python):
        """Return the digest of what would be tested now."""
        code = (
            "import json, sys; sys.path[:0] = ['tests', 'scripts'];"
            "import django, upstream;"
            "leg, settings, pool, *arguments = sys.argv[1:];"
            "print(upstream.Run(django.get_version(), leg, settings,"
            " json.loads(pool), arguments).what)"
        )
        return subprocess.check_output(
            [python, "-c", code, self.leg, "test_%s" % self.database, self.pool]
            + ["--noinput", "--verbosity=1", "--parallel=2", *self.labels],
            cwd=environments.ROOT,
            text=True,
        ).strip()


def get_cells():
    """Return all cells, in the order to run them in."""
    versions = sorted(environments.DJANGO_PYTHONS, reverse=True)
    cells = [
        Cell(version, database, leg, "true", ())
        for version in versions
        for database in ["postgresql", "mysql", "sqlite"]
        for leg in ["overlay", "patched"]
    ]
    for pool in [
        '{"mode": "transaction"}',
        '{"min_size": 2}',
        '{"max_size": 3}',
        '{"reset": "always"}',
        "false",
    ]:
        for database in ["postgresql", "mysql"]:
            cells.append(Cell(NEWEST, database, "overlay", pool, ()))
    cells.append(Cell(NEWEST, "sqlite", "overlay", "false", ()))
    gis = [(version, "postgis") for version in versions]
    # Debian's own Python, which can use SpatiaLite, is too old for the others.
    gis += [(NEWEST, "mysqlgis"), ("5.2", "spatialite")]
    cells += [
        Cell(version, database, leg, "true", ("gis_tests",))
        for version, database in gis
        for leg in ["overlay", "patched"]
    ]
    return cells


def get_quick_cells():
    return [
        Cell(NEWEST, database, "overlay", "true", tuple(QUICK_LABELS))
        for database in ["postgresql", "mysql"]
    ]


def read_results():
    try:
        return json.loads(RESULTS.read_text())
    except FileNotFoundError:
        return {}


def write_results(results):
    RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")


def write_page(cells, results, whats):
    """Write docs/upstream-suite.md. whats has what would be tested now."""
    lines = [
        TITLE,
        "| Django | Python | Database | Leg | POOL | Tests | Passed | Skipped "
        "| Difference | Date |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    details = []
    for cell in cells:
        result = results.get(cell.name)
        leg = cell.leg if not cell.labels else "%s, %s" % (cell.leg, cell.labels[0])
        place = {**DATABASES, **GIS_DATABASES}[cell.database]
        if result is None:
            lines.append(
                "| %s | | %s | %s | `%s` | | | | not run yet | |"
                % (cell.version, place, leg, cell.pool)
            )
            continue
        # The first line of each difference isn't indented.
        count = sum(not line.startswith(" ") for line in result["differences"])
        difference = "**%d**" % count if count else "none"
        if whats.get(cell.name) != result["what"]:
            difference += " (stale)"
        server = result["server"].replace("PostgreSQL ", "").replace("SQLite ", "")
        counts = result["with_pool"]
        lines.append(
            "| {django} | {python} | %s %s | %s | `%s` | %d | %d | %d | %s | {date} |"
            "".format(**result)
            % (
                place,
                server.split("-")[0],
                leg,
                cell.pool,
                counts["run"],
                counts["passed"],
                counts["skipped"],
                difference,
            )
        )
        if count:
            details += ["", "## %s" % cell.name, "", "```"]
            details += [*result["differences"], "```"]
    PAGE.write_text("\n".join([*lines, *details]) + "\n")


def select(cells, options):
    return [
        cell
        for cell in cells
        if (not options.django or cell.version in options.django)
        and (not options.database or cell.database in options.database)
        and (not options.leg or cell.leg == options.leg)
        and (not options.pool or cell.pool == options.pool)
    ]


def run_quick(options):
    """Run a part of the suite, without keeping what is found."""
    status = 0
    for cell in select(get_quick_cells(), options):
        python = environments.ensure(cell.environment)
        test_matrix.print_title("Django %s's tests on %s" % cell[:2])
        status |= cell.run(python)
    return status


def run_matrix(options):
    cells, results = get_cells(), read_results()
    names = {cell.environment for cell in cells}
    pythons = {name: environments.ensure(name) for name in sorted(names)}
    whats = {cell.name: cell.get_what(pythons[cell.environment]) for cell in cells}
    lock = threading.Lock()
    interrupted = threading.Event()

    def run_group(group):
        """Run cells one by one. Return whether one has failed."""
        status = 0
        for cell in group:
            if interrupted.is_set():
                break
            with tempfile.TemporaryDirectory() as directory:
                report = Path(directory) / "report.json"
                with open(Path(directory) / "output", "w+") as output:
                    status |= cell.run(pythons[cell.environment], report, output)
                    output.seek(0)
                    text = output.read()
                with lock:
                    test_matrix.print_title(cell.name)
                    print(text, flush=True)
                    if report.exists():
                        results[cell.name] = json.loads(report.read_text())
                    # Each time, for the next may be interrupted.
                    write_results(results)
                    write_page(cells, results, whats)
        return status

    wanted = [
        cell
        for cell in ([] if options.only_page else select(cells, options))
        if not is_done(results.get(cell.name), whats[cell.name])
    ]
    # Those that are compared with the same run without the pool wait for it.
    groups = {}
    for cell in wanted:
        groups.setdefault((cell.version, cell.database), []).append(cell)
    with ThreadPoolExecutor(options.jobs) as executor:
        try:
            status = int(any(list(executor.map(run_group, groups.values()))))
        except BaseException:
            # What is running has got the same Ctrl+C.
            interrupted.set()
            executor.shutdown(wait=False, cancel_futures=True)
            raise
    write_page(cells, results, whats)
    done = sum(is_done(results.get(cell.name), whats[cell.name]) for cell in cells)
    print("%d of %d cells are known to be without difference." % (done, len(cells)))
    return 1 if status or done < len(cells) else 0


def is_done(result, what):
    """Return whether a result is of what would be tested now, and good."""
    return bool(result) and result["what"] == what and not result["differences"]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--django", action="append", choices=list(environments.DJANGO_PYTHONS)
    )
    parser.add_argument(
        "--database", action="append", choices=[*DATABASES, *GIS_DATABASES]
    )
    parser.add_argument("--leg", choices=["overlay", "patched"])
    parser.add_argument("--pool", metavar="JSON", help="cells with this POOL only")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="run a part of the suite with the newest Django, keep nothing",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=2,
        help="cells to run at the same time, each with two processes; servers and "
        "processes wait for each other half of the time (default: %(default)s)",
    )
    parser.add_argument(
        "--only-page", action="store_true", help="write the page, run nothing"
    )
    options = parser.parse_args()
    return run_quick(options) if options.quick else run_matrix(options)


if __name__ == "__main__":
    sys.exit(main())
