"""
Tests of the patch series: that it's the same as the overlay, and that it's
noticed when it isn't anymore. None needs the network.
"""

import ast
import contextlib
import importlib.util
import os
import re
import shutil
import tempfile
import textwrap
from pathlib import Path
from unittest import mock, skipUnless

import edits
import make_patches
import sdists
import series
import suite

import django
import scripts
from django.test import SimpleTestCase

VERSION = "%d.%d" % django.VERSION[:2]

# What is defined by the installer or by the series alone, and why.
DIFFERENCES = {}


def get_module(path):
    """Return the name of the module at a path, say "django/db/utils.py"."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def find_definitions(source, module):
    """
    Return {name: definitions} of a module's functions, classes' attributes,
    variables, and submodules that it imports. What else it imports is its own
    business.
    """
    definitions = {}

    def add(name, node):
        definitions.setdefault("%s:%s" % (module, name), []).append(ast.dump(node))

    def visit(nodes, prefix=""):
        for node in nodes:
            if isinstance(node, ast.ClassDef):
                visit(node.body, prefix="%s%s." % (prefix, node.name))
            elif isinstance(node, (ast.AsyncFunctionDef, ast.FunctionDef)):
                add(prefix + node.name, node)
            elif isinstance(node, ast.Assign):
                for target in node.targets:
                    if isinstance(target, ast.Name):
                        add(prefix + target.id, node)
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.startswith("%s." % module):
                        add(alias.name.removeprefix("%s." % module), node)
            else:
                # E.g. the branches of an if.
                for name in ("body", "handlers", "orelse", "finalbody"):
                    visit(getattr(node, name, []), prefix)

    visit(ast.parse(source).body)
    return definitions


def find_changes(source, edited_source, module):
    """Return the names of what has been added, changed or removed."""
    before = find_definitions(source, module)
    after = find_definitions(edited_source, module)
    return {
        name
        for name in before.keys() | after.keys()
        if before.get(name) != after.get(name)
    }


# Runs the installer on modules that were imported before, and prints what each
# of its edits did. The modules of drivers that aren't there are left out.
OBSERVER = """
import importlib, importlib.util, json, sys

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

settings.configure()
spec = importlib.util.spec_from_file_location("installer", sys.argv[1])
installer = importlib.util.module_from_spec(spec)
spec.loader.exec_module(installer)
changes = {}


def snapshot(module):
    found = dict(vars(module))
    for name, value in vars(module).items():
        if isinstance(value, type) and value.__module__ == module.__name__:
            for attribute in vars(value):
                found["%s.%s" % (name, attribute)] = vars(value)[attribute]
    return found


def observe(edit):
    def observer(module):
        before = snapshot(module)
        edit(module)
        after = snapshot(module)
        changes[module.__name__] = [
            "%s:%s" % (module.__name__, name)
            for name in {**before, **after}
            if name not in before or before[name] is not after.get(name)
        ]

    return observer


for name, edit in installer.EDITS.items():
    try:
        importlib.import_module(name)
    except (ImportError, ImproperlyConfigured):
        continue
    installer.EDITS[name] = observe(edit)
installer.install()
print(json.dumps(changes))
"""


@skipUnless(suite.get_leg() == "overlay", "Django has been patched.")
@skipUnless(VERSION in edits.VERSIONS, "There's no series for this Django.")
class EqualityTests(scripts.ScriptTestMixin, SimpleTestCase):
    def edit_installed(self):
        """
        Make the series' edits to the installed Django's source. Return
        {module: (source, edited source)}.
        """
        root = Path(django.__file__).parent.parent

        def read(path):
            return done.get(path) or (root / path).read_text(encoding="utf-8")

        done = {}
        for commit in series.COMMITS:
            # An installed Django has neither documentation nor tests.
            if commit not in [series.DOCS, series.OTHER_TESTS, series.TESTS]:
                done.update(commit.get_texts(VERSION, read))
        return {
            get_module(path): ((root / path).read_text(encoding="utf-8"), text)
            for path, text in done.items()
            if (root / path).exists()
        }

    def test_same_definitions(self):
        """The installer changes what the series changes."""
        # Not to be imported where Django has been patched.
        from django_pool_patch.install import EDITS

        installer = importlib.util.find_spec("django_pool_patch.install").origin
        observed = self.run_script(OBSERVER, args=[installer])
        edited = self.edit_installed()
        self.assertIn("django.db.backends.base.base", observed)
        self.assertEqual(set(EDITS), set(edited))
        for module, sources in edited.items():
            with self.subTest(module=module):
                if module not in observed:
                    self.skipTest("The driver isn't installed.")
                expected = find_changes(*sources, module)
                self.assertNotEqual(expected, set())
                self.assertEqual(
                    {name for name in expected if name not in DIFFERENCES},
                    {name for name in observed[module] if name not in DIFFERENCES},
                )

    def test_new_files(self):
        """The patches add the overlay's files as they are."""
        overlay = {
            change.path: change.read()
            for change in [*edits.add_all("django"), *edits.add_all("tests")]
        }
        for version in edits.VERSIONS:
            added = {}
            for path in sdists.get_series("%s.0" % version):
                added.update(find_added(path.read_text(encoding="utf-8")))
            for path, text in overlay.items():
                with self.subTest(version=version, path=path):
                    # A diff of them would be long.
                    self.assertIs(added.get(path) == text, True, make_patches.REMEDY)


def find_added(patch):
    """Return {path: text} of the new files in a patch."""
    added = {}
    for diff in re.split("^diff --git a/", patch, flags=re.MULTILINE)[1:]:
        path, mode, *lines = diff.split("\n")
        if mode.startswith("new file mode "):
            added[path.partition(" b/")[0]] = "".join(
                "%s\n" % line[1:]
                for line in lines
                if line.startswith("+") and not line.startswith("+++ ")
            )
    return added


class EditTests(SimpleTestCase):
    def test_edits(self):
        text = "first\nsecond\nthird\n"
        for edit, edited in [
            (
                edits.insert_after("path", "second\n", "new\n"),
                "first\nsecond\nnew\nthird\n",
            ),
            (
                edits.insert_before("path", "second\n", "new\n"),
                "first\nnew\nsecond\nthird\n",
            ),
            (edits.replace("path", "second\n", "new\n"), "first\nnew\nthird\n"),
        ]:
            with self.subTest(edit=edit):
                self.assertEqual(edit.apply(text), edited)

    def test_ambiguous_anchor(self):
        edit = edits.insert_after("a/b.py", "same\n", "new\n")
        for text, count in [("same\nsame\n", 2), ("other\n", 0)]:
            with self.subTest(text=text):
                msg = "a/b.py: what an edit looks for occurs %d times instead of once"
                with self.assertRaisesMessage(edits.EditFailure, msg % count):
                    edit.apply(text)

    def test_versions(self):
        commit = edits.Commit(
            "Subject.",
            "Body.",
            [
                edits.replace("path", "a", "b", versions=["5.2"]),
                edits.replace("path", "a", "c", versions=["6.0"]),
            ],
        )
        for version, texts in [
            ("5.2", {"path": "b"}),
            ("6.0", {"path": "c"}),
            ("6.1", {}),
        ]:
            with self.subTest(version=version):
                self.assertEqual(commit.get_texts(version, {"path": "a"}.get), texts)
        with self.assertRaisesMessage(edits.EditFailure, "no series for Django 4.2"):
            edits.replace("path", "a", "b", versions=["4.2"])


@skipUnless(shutil.which("git"), "git isn't installed.")
class CheckTests(SimpleTestCase):
    """Patches that aren't what would be written are found."""

    def setUp(self):
        self.directory = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.tree = self.directory / "tree"
        self.overlay = self.directory / "overlay"
        self.patches = self.directory / "patches"
        self.new_file = self.overlay / "django" / "new.py"
        self.new_file.parent.mkdir(parents=True)
        self.new_file.write_text("a = 1\n")
        self.enterContext(mock.patch("edits.OVERLAY", self.overlay))
        self.tree.mkdir()
        (self.tree / "old.py").write_text("b = 1\nc = 2\n")
        sdists.git(self.tree, "init", "--quiet")
        sdists.git(self.tree, "add", "--all")
        sdists.git(self.tree, "commit", "--quiet", "-m", "Base.")
        self.commits = [
            edits.Commit("Added a file.", "It's new.", edits.add_all("django")),
            edits.Commit(
                "Edited a file.",
                """
                It has
                a long body.
                """,
                [edits.insert_after("old.py", "b = 1\n", "b += 1\n")],
            ),
        ]

    # Python 3.10 has it for async tests only.
    def enterContext(self, context):
        stack = contextlib.ExitStack()
        self.addCleanup(stack.close)
        return stack.enter_context(context)

    def make(self):
        return make_patches.make_series(self.commits, "6.1", self.tree)

    def check(self):
        make_patches.check_fresh(self.patches, self.make())

    def assertStale(self, *problems):
        with self.assertRaises(make_patches.StalePatches) as cm:
            self.check()
        self.assertEqual(
            str(cm.exception),
            "\n".join([*(p % self.patches for p in problems), "Run 'make patches'."]),
        )

    def test_fresh(self):
        make_patches.write_series(self.patches, self.make())
        self.check()
        names = sorted(path.name for path in self.patches.iterdir())
        self.assertEqual(names, ["0001-Added-a-file.patch", "0002-Edited-a-file.patch"])
        self.assertEqual(
            (self.patches / names[1]).read_text().partition("diff --git")[0],
            textwrap.dedent("""\
                From 0000000000000000000000000000000000000000 Mon Sep 17 00:00:00 2001
                From: django-pool-patch contributors <django-pool-patch@localhost>
                Date: Wed, 5 Aug 2026 12:00:00 +0000
                Subject: [PATCH 2/2] Edited a file.

                It has
                a long body.

                """),
        )

    def test_apply(self):
        make_patches.write_series(self.patches, self.make())
        sdists.git(self.tree, "am", *map(str, sorted(self.patches.iterdir())))
        self.assertEqual((self.tree / "old.py").read_text(), "b = 1\nb += 1\nc = 2\n")
        self.assertEqual((self.tree / "django" / "new.py").read_text(), "a = 1\n")

    def test_users_configuration_does_not_matter(self):
        expected = self.make()
        configuration = self.directory / "gitconfig"
        configuration.write_text("[diff]\nnoprefix = true\n[format]\nsignature = x\n")
        variables = {
            "GIT_AUTHOR_NAME": "Somebody",
            "GIT_CONFIG_GLOBAL": str(configuration),
            "TZ": "Asia/Tokyo",
        }
        with mock.patch.dict(os.environ, variables):
            self.assertEqual(self.make(), expected)

    def test_changed_overlay(self):
        make_patches.write_series(self.patches, self.make())
        self.new_file.write_text("a = 2\n")
        self.assertStale(
            "%s/0001-Added-a-file.patch isn't what patches/series.py says."
        )

    def test_renamed_commit(self):
        make_patches.write_series(self.patches, self.make())
        self.commits[1] = edits.Commit("Renamed.", "Why.", self.commits[1].changes)
        self.assertStale(
            "%s/0002-Renamed.patch is missing.",
            "%s/0002-Edited-a-file.patch isn't part of the series anymore.",
        )
        make_patches.write_series(self.patches, self.make())
        self.check()

    def test_forgotten_file(self):
        (self.overlay / "django" / "other.py").write_text("")
        msg = "django/other.py isn't added by any commit."
        with self.assertRaisesMessage(edits.EditFailure, msg):
            make_patches.check_coverage(self.commits)

    def test_file_of_two_commits(self):
        self.commits.append(self.commits[0])
        msg = "django/new.py is added by more than one commit."
        with self.assertRaisesMessage(edits.EditFailure, msg):
            make_patches.check_coverage(self.commits)

    def test_long_lines(self):
        diff = "+++ b/docs/a.txt\n+%s\n+%s\n-%s\n+https://%s\n" % (
            "x" * 79,
            "y" * 80,
            "z" * 90,
            "x" * 80,
        )
        self.assertEqual(
            list(make_patches.find_long_lines(diff)),
            ["docs/a.txt: longer than 79 characters: %s" % ("y" * 80)],
        )

    def test_new_lines(self):
        diff = "@@ -1,2 +1,3 @@ x\n+a\n@@ -9 +10 @@\n@@ -12,2 +12,0 @@\n"
        self.assertEqual(list(make_patches.find_new_lines(diff)), [(1, 3), (10, 10)])
