#!/usr/bin/env python3
"""
Write the patch series of patches/django-*/ from patches/series.py and the
overlay, or check it.

    scripts/make_patches.py             write all series
    scripts/make_patches.py --check     fail if they aren't what would be
                                        written, don't apply, or don't comply
                                        with Django's style

A series is made for a minor version's first release, X.Y.0. It's checked with
that one and with the newest. Needs pip and git, and for --check what is in
requirements-lint.txt.
"""

import argparse
import ast
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import edits
import sdists

sys.path.append(str(sdists.PATCHES))

AUTHOR = "django-pool-patch contributors"
EMAIL = "django-pool-patch@localhost"
# That Django 6.1 was published. It's the same each time, so that the patches
# are.
DATE = "2026-08-05T12:00:00+00:00"

FORMAT_PATCH = [
    "--full-index",
    "--no-signature",
    # A diffstat would depend on git's version.
    "--no-stat",
    "--no-numbered",
    "--no-renames",
    "--zero-commit",
    "-1",
]

# From Django's .flake8, which isn't in its sdists. There, files as old as
# those edited are exempted from the length of comments (W505).
FLAKE8 = ["--isolated", "--extend-ignore=E203", "--max-line-length=88"]
FLAKE8_NEW_FILES = ["--max-doc-length=79"]

# The oldest Python that a version of Django supports.
OLDEST_PYTHON = {"5.2": (3, 10), "6.0": (3, 12), "6.1": (3, 12)}

REMEDY = "Run 'make patches'."


class StalePatches(Exception):
    pass


# Writing.


def make_series(commits, version, tree):
    """
    Return {name: text} of a version's patches, to be applied to the tree, a
    git repository. Nothing is changed in it.
    """
    with tempfile.TemporaryDirectory() as temporary:
        repository = Path(temporary, "repository")
        patches = Path(temporary, "patches")
        sdists.git(temporary, "init", "--quiet", "--bare", str(repository))
        # What is committed is on top of the tree's objects.
        alternates = repository / "objects" / "info" / "alternates"
        alternates.write_text("%s\n" % (tree / ".git" / "objects"))
        parent = sdists.git(tree, "rev-parse", "HEAD").strip()
        sdists.git(repository, "read-tree", parent)
        made, done = [], {}

        def read(path):
            if path in done:
                return done[path]
            return (tree / path).read_text(encoding="utf-8")

        for commit in commits:
            texts = commit.get_texts(version, read)
            if texts:
                parent = make_commit(repository, parent, commit.message, texts)
                made.append((parent, commit.context))
            done.update(texts)
        for number, (name, context) in enumerate(made, 1):
            sdists.git(
                repository,
                "format-patch",
                *FORMAT_PATCH,
                "--output-directory=%s" % patches,
                "--start-number=%d" % number,
                "--subject-prefix=PATCH %d/%d" % (number, len(made)),
                "--unified=%d" % context,
                name,
            )
        return {
            path.name: path.read_text(encoding="utf-8")
            for path in sorted(patches.glob("*.patch"))
        }


def make_commit(repository, parent, message, texts):
    """Commit files on top of a commit, in the index alone."""
    for path, text in texts.items():
        blob = sdists.git(repository, "hash-object", "-w", "--stdin", input=text)
        entry = "100644,%s,%s" % (blob.strip(), path)
        sdists.git(repository, "update-index", "--add", "--cacheinfo", entry)
    commit = sdists.git(
        repository,
        "commit-tree",
        "-p",
        parent,
        sdists.git(repository, "write-tree").strip(),
        input=message,
        GIT_AUTHOR_NAME=AUTHOR,
        GIT_AUTHOR_EMAIL=EMAIL,
        GIT_AUTHOR_DATE=DATE,
        GIT_COMMITTER_NAME=AUTHOR,
        GIT_COMMITTER_EMAIL=EMAIL,
        GIT_COMMITTER_DATE=DATE,
    )
    return commit.strip()


def write_series(directory, series):
    """Write patches, in place of those that are there."""
    directory.mkdir(parents=True, exist_ok=True)
    for path in directory.glob("*.patch"):
        if path.name not in series:
            path.unlink()
    for name, text in series.items():
        (directory / name).write_text(text, encoding="utf-8")


def check_coverage(commits):
    """Raise EditFailure unless each new file is added by one commit."""
    paths = [
        change.path
        for commit in commits
        for change in commit.changes
        if isinstance(change, edits.NewFile)
    ]
    for path in set(paths):
        if paths.count(path) > 1:
            raise edits.EditFailure("%s is added by more than one commit." % path)
    for change in [*edits.add_all("django"), *edits.add_all("tests")]:
        if change.path not in paths:
            raise edits.EditFailure(
                "%s isn't added by any commit. Add it to patches/series.py."
                % change.path
            )


# Checking.


def check_fresh(directory, series):
    """Raise StalePatches unless a directory has the patches of a series."""
    problems = []
    for name, text in series.items():
        path = directory / name
        if not path.exists():
            problems.append("%s is missing." % show(path))
        elif path.read_text(encoding="utf-8") != text:
            problems.append("%s isn't what patches/series.py says." % show(path))
    for path in sorted(directory.glob("*.patch")):
        if path.name not in series:
            problems.append("%s isn't part of the series anymore." % show(path))
    if problems:
        raise StalePatches("\n".join([*problems, REMEDY]))


def show(path):
    path = Path(path)
    return path.relative_to(sdists.ROOT) if path.is_relative_to(sdists.ROOT) else path


def find_newest(version):
    """Return the newest release of a minor version that pip knows."""
    output = sdists.run(
        sys.executable,
        "-m",
        "pip",
        "index",
        "versions",
        "--disable-pip-version-check",
        "--ignore-requires-python",
        "Django",
    )
    numbers = re.findall(r"\b%s\.(\d+)(?=,|\s)" % re.escape(version), output)
    return "%s.%d" % (version, max(map(int, numbers), default=0))


def find_problems(version):
    """
    Apply the series to a release, X.Y.Z. Return a list of what Django's own
    tools and rules have against the result.
    """
    tree = sdists.ensure_patched(version)
    base = sdists.git(tree, "rev-list", "--max-parents=0", "HEAD").strip()
    changes = sdists.git(tree, "diff", "--no-renames", "--name-status", base, "HEAD")
    paths = {"A": [], "M": []}
    for line in changes.splitlines():
        status, path = line.split("\t")
        paths[status].append(path)
    new_code = [path for path in paths["A"] if path.endswith(".py")]
    edited_code = [path for path in paths["M"] if path.endswith(".py")]
    code = [*new_code, *edited_code]
    black = ["black", "--check", "--quiet", "--diff"]
    isort = ["isort", "--check-only", "--diff", "--settings-path=."]
    commands = [
        ["git", "diff", "--check", base, "HEAD"],
        python_tool(*black, *new_code),
        python_tool(*isort, *code),
        python_tool("flake8", *FLAKE8, *edited_code),
        python_tool("flake8", *FLAKE8, *FLAKE8_NEW_FILES, *new_code),
    ]
    for path in edited_code:
        # What was formatted by an older version of black isn't ours to change.
        diff = sdists.git(tree, "diff", "--unified=0", base, "HEAD", "--", path)
        ranges = ["--line-ranges=%d-%d" % lines for lines in find_new_lines(diff)]
        commands.append(python_tool(*black, *ranges, path))
    problems = []
    for command in commands:
        result = subprocess.run(
            command,
            cwd=tree,
            env={**os.environ, "GIT_CONFIG_GLOBAL": os.devnull},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if result.returncode:
            problems.append("%s\n%s" % (" ".join(command[:4]), result.stdout))
    oldest = OLDEST_PYTHON[sdists.get_series_name(version).partition("-")[2]]
    for path in code:
        source = (tree / path).read_text(encoding="utf-8")
        try:
            ast.parse(source, filename=path, feature_version=oldest)
        except SyntaxError as exc:
            problems.append("%s: %s" % (path, exc))
    problems += find_long_lines(sdists.git(tree, "diff", base, "HEAD", "--", "docs"))
    return problems


def python_tool(*arguments):
    return [sys.executable, "-m", *arguments]


def find_new_lines(diff):
    """Yield the first and the last number of lines that were added."""
    for start, count in re.findall(r"^@@ \S+ \+(\d+)(?:,(\d+))? @@", diff, re.M):
        if count != "0":
            yield int(start), int(start) + int(count or 1) - 1


def find_long_lines(diff):
    """Yield a complaint for each line added to docs that is too long."""
    path = None
    for line in diff.splitlines():
        if line.startswith("+++ b/"):
            path = line.removeprefix("+++ b/")
        elif line.startswith("+") and len(line) > 80 and "://" not in line:
            yield "%s: longer than 79 characters: %s" % (path, line[1:])


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing, but check what is there"
    )
    options = parser.parse_args()
    import series

    check_coverage(series.COMMITS)
    made = {
        version: make_series(
            series.COMMITS, version, sdists.ensure_pristine("%s.0" % version)
        )
        for version in edits.VERSIONS
    }
    for version, patches in made.items():
        directory = sdists.PATCHES / sdists.get_series_name(version)
        if options.check:
            check_fresh(directory, patches)
        else:
            write_series(directory, patches)
            print("Wrote %d patches to %s." % (len(patches), show(directory)))
    if not options.check:
        return
    for version in edits.VERSIONS:
        for release in ["%s.0" % version, find_newest(version)]:
            problems = find_problems(release)
            if problems:
                sys.exit("Django %s:\n%s" % (release, "\n".join(problems)))
            print("Django %s: the patches apply, and are fine." % release, flush=True)


if __name__ == "__main__":
    try:
        main()
    except (StalePatches, edits.EditFailure, sdists.SdistFailure) as exc:
        sys.exit(str(exc))
