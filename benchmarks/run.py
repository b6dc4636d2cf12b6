#!/usr/bin/env python
"""
Compare django-pool-patch with its peers.

    python benchmarks/run.py [--quick] [--only PART,PART] [--output DIR]
                             [--json FILE]

It starts its own servers, prints what it measures, and writes a page with
plots. 'make bench' sets everything up by itself. See README.md for what is
measured and how to read it.

Nothing is judged here: the exit status is 0 unless something can't run.
"""

import argparse
import logging
import sys
from datetime import date
from importlib import import_module
from pathlib import Path
from time import monotonic

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE), str(ROOT), str(ROOT / "tests")]

try:
    import processes
    import report
    import servers
    import services
    import tables
    import versions
except ImportError as e:
    sys.exit("%s. 'make bench' sets everything up by itself." % e)

# By letter too, in the order in which they run.
PARTS = {
    "a": "checkout",
    "b": "requests_",
    "c": "serving",
    "d": "recovery",
    "e": "costs",
    "f": "tasks",
}

SERVERS = {
    "postgresql": servers.PostgreSQLServer,
    "mysql": servers.MariaDBServer,
}


class Context:
    """What the parts have in common."""

    def __init__(self, quick):
        self.quick = quick
        self.begun_at = monotonic()
        self.server_versions = {}

    def say(self, message):
        print("  [%4.0f s] %s" % (monotonic() - self.begun_at, message), flush=True)

    def start_server(self, stack, vendor, left_out, **kwargs):
        """Return a server that ends with the stack, or None."""
        try:
            server = stack.enter_context(SERVERS[vendor](**kwargs))
        except servers.ServerNotInstalled as e:
            left_out.append(str(e))
            print(e, flush=True)
            return None
        sql = "SHOW server_version" if vendor == "postgresql" else "SELECT version()"
        self.server_versions[versions.SERVERS[vendor]] = server.execute(sql)[0][0]
        return server

    def start_pgbouncer(self, stack, server, left_out):
        """Return a PgBouncer that ends with the stack, or None."""
        try:
            pgbouncer = stack.enter_context(services.PgBouncerServer(server))
        except servers.ServerError as e:
            left_out.append(str(e).partition("\n")[0])
            print(e, flush=True)
            return None
        self.server_versions["PgBouncer"] = versions.get_pgbouncer(pgbouncer.program)
        return pgbouncer


def run_part(name, quick):
    """Run a part. Return what goes into the JSON file."""
    part = import_module(name)
    print("\n%s" % part.TITLE, flush=True)
    context = Context(quick)
    result = part.run(context)
    # What is missing is missed more than once.
    result["left_out"] = list(dict.fromkeys(result["left_out"]))
    for table in part.get_tables(result):
        tables.print_table(table)
    for line in result["left_out"]:
        print("\n%s" % line)
    return {
        "date": date.today().isoformat(),
        "quick": quick,
        "seconds": round(monotonic() - context.begun_at),
        "versions": {**versions.get_versions(), **context.server_versions},
        "result": result,
    }


def get_parts(text):
    """Return the modules' names of "a,b" or "checkout,requests"."""
    by_name = {name.rstrip("_"): name for name in PARTS.values()}
    names = []
    for word in text.split(","):
        name = PARTS.get(word) or by_name.get(word)
        if name is None:
            raise argparse.ArgumentTypeError(
                "there is no part %r; there are %s"
                % (word, ", ".join("%s (%s)" % item for item in PARTS.items()))
            )
        names.append(name)
    return names


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n\n")[0].strip(),
        epilog="Parts: %s."
        % ", ".join(
            "%s or %s" % (letter, name.rstrip("_")) for letter, name in PARTS.items()
        ),
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="run everything in a small form, to see that it works",
    )
    parser.add_argument(
        "--only",
        type=get_parts,
        default=list(PARTS.values()),
        metavar="PARTS",
        help="run some parts, as in a,b",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=ROOT / "docs",
        metavar="DIR",
        help="where to write benchmarks.md and benchmarks/; docs by default",
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write this run's figures to FILE"
    )
    parser.add_argument(
        "--page",
        action="store_true",
        help="measure nothing, and write the page anew from its JSON file",
    )
    options = parser.parse_args()
    processes.end_by_signals()
    # Servers that end take connections with them.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    measured, failed = {}, []
    for name in [] if options.page else options.only:
        try:
            measured[name] = run_part(name, options.quick)
        except Exception as e:
            failed.append(name)
            logging.exception("Part %s can't run: %s", name, e)
    if options.json:
        report.write_json(options.json, measured)
    report.update(options.output, measured, [import_module(n) for n in PARTS.values()])
    if failed:
        sys.exit("Couldn't run: %s" % ", ".join(failed))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("Interrupted; everything was stopped.", file=sys.stderr)
        sys.exit(130)
