import ast
import importlib.util
import inspect
import os
import sys
import tempfile
import textwrap
from pathlib import Path
from unittest import skipUnless

import suite

import django.db.pool
import scripts
from django.db import connection, connections
from django.db.pool import pools
from django.test import SimpleTestCase

# Modules of django.db.pool in the order of their dependencies: each may import
# those before it.
POOL_MODULES = [
    "exceptions",
    "options",
    "stats",
    "core",
    "base",
    "workers",
    "housekeeping",
    "threads",
    "asyncio",
    "registry",
    "scope",
    "__init__",
]

DRIVERS = ["MySQLdb", "cx_Oracle", "oracledb", "psycopg", "psycopg2", "sqlite3"]

# The overlay's directory, or Django's own if it has been patched.
DJANGO = Path(inspect.getfile(django.db.pool)).parent.parent.parent

needs_overlay = skipUnless(suite.get_leg() == "overlay", "Django has been patched.")


@needs_overlay
class InstallTests(scripts.ScriptTestMixin, SimpleTestCase):
    databases = {"default"}

    def run_source(self, source, **kwargs):
        pool = kwargs.pop("POOL", True)
        database = scripts.get_database(connection, POOL=pool)
        return self.run_script(textwrap.dedent(source), {"default": database}, **kwargs)

    def test_installed_app(self):
        output = self.run_source("""
            import json, sys

            import scripts

            assert not any(name.startswith("django_pool_patch") for name in sys.modules)
            scripts.configure(INSTALLED_APPS=["django_pool_patch"])
            from django.db import connection
            from django.db.pool import pools

            scripts.get_session(connection)
            print(json.dumps([pools["default"].stats().in_use]))
            """)
        self.assertEqual(output, [1])

    def test_settings_module(self):
        """
        install() in a settings module does all there is to do: INSTALLED_APPS
        may be replaced, and django.setup() never be called.
        """
        for setup in ["", "django.setup()"]:
            with self.subTest(setup=setup), tempfile.TemporaryDirectory() as directory:
                Path(directory, "settings_that_install.py").write_text(
                    textwrap.dedent("""
                    import json, os

                    from django_pool_patch import install

                    install()
                    INSTALLED_APPS = ["django_pool_patch"]
                    DATABASES = json.loads(os.environ["POOL_TEST_DATABASES"])
                    USE_TZ = False
                    """)
                )
                output = self.run_source(
                    """
                    import json, os, sys

                    sys.path.insert(0, sys.argv[1])
                    os.environ["DJANGO_SETTINGS_MODULE"] = "settings_that_install"
                    import django
                    from django.conf import settings

                    settings.INSTALLED_APPS = ["django.contrib.contenttypes"]
                    %s
                    from django.db import connection
                    from django.db.pool import pools

                    connection.ensure_connection()
                    print(json.dumps([pools["default"].stats().in_use]))
                    """ % setup,
                    # Django discourages from using databases that early.
                    options=[
                        *scripts.WARNING_OPTIONS,
                        "-Wignore:Accessing the database during:RuntimeWarning",
                    ],
                    args=[directory],
                )
                self.assertEqual(output, [1])

    def test_idempotent(self):
        output = self.run_source("""
            import importlib, json, sys

            import scripts

            scripts.configure()
            import django_pool_patch
            from django.db import connections
            from django_pool_patch import install
            from django_pool_patch.install import EXTENDED_PACKAGES

            connection = connections["default"]

            connection.ensure_connection()

            def snapshot():
                classes = type(connection).__mro__ + type(connection.creation).__mro__
                return (
                    [dict(vars(each)) for each in classes],
                    [
                        list(importlib.import_module(name).__path__)
                        for name in EXTENDED_PACKAGES
                    ],
                    list(sys.meta_path),
                )

            before = snapshot()
            install()
            importlib.reload(django_pool_patch)
            django_pool_patch.install()
            after = snapshot()
            print(json.dumps([before == after, "connection_pool" in str(before)]))
            """)
        self.assertEqual(output, [True, True])

    def test_import_has_no_side_effects(self):
        """
        Importing the package opens nothing, starts no thread and imports no
        driver.
        """
        output = self.run_source(
            """
            import json, os, sys, threading

            events = []

            def record(event, args):
                if event == "open":
                    path, mode = args[0], args[1]
                    is_read = mode is None or set(mode) <= set("rbU")
                    name = os.fsdecode(path) if not isinstance(path, int) else ""
                    if is_read and name.endswith((".py", ".pyc")):
                        return
                    events.append("%s %s %s" % (event, path, mode))
                elif event.split(".")[0] in {"socket", "sqlite3", "subprocess"}:
                    events.append("%s %s" % (event, args))
                elif event in {"os.fork", "_thread.start_new_thread"}:
                    events.append(event)

            import django.core.checks, django.db

            descriptors = os.listdir("/dev/fd") if os.path.exists("/dev/fd") else []
            sys.addaudithook(record)
            import django_pool_patch

            report = {
                "events": events,
                "threads": threading.active_count(),
                "drivers": sorted(set(sys.modules).intersection(sys.argv[1:])),
                "backends": [
                    name
                    for name in sys.modules
                    if name.startswith("django.db.backends.")
                    and name.endswith(".base")
                    and not name.startswith("django.db.backends.base")
                ],
                "has_opened": descriptors
                != (os.listdir("/dev/fd") if descriptors else []),
            }
            print(json.dumps(report))
            """,
            args=DRIVERS,
        )
        self.assertEqual(
            output,
            {
                "events": [],
                "threads": 1,
                "drivers": [],
                "backends": [],
                "has_opened": False,
            },
        )

    def test_imported_before(self):
        """
        Modules that were imported before the package are patched too, and so
        are wrappers that were made before.
        """
        output = self.run_source(
            """
            import importlib, json, sys

            engine = sys.argv[1]
            for name in ["base.base", "base.creation"]:
                importlib.import_module("django.db.backends.%s" % name)
            importlib.import_module("django.core.checks.database")
            base = importlib.import_module("%s.base" % engine)
            connect = base.DatabaseWrapper.connect
            earlier = base.DatabaseWrapper({})
            import scripts

            scripts.configure()
            from django.core.checks.registry import registry
            from django.db import connections
            from django.db.pool import pools

            connection = connections["default"]
            scripts.get_session(connection)
            earlier.settings_dict.update(connection.settings_dict)
            scripts.get_session(earlier)
            checks = {check.__name__ for check in registry.get_checks()}
            report = [
                type(connection) is base.DatabaseWrapper,
                connect is not base.DatabaseWrapper.connect,
                type(pools["default"].connector).__module__,
                pools["default"].stats().in_use,
                "check_pool_settings" in checks,
            ]
            print(json.dumps(report))
            """,
            args=[connection.settings_dict["ENGINE"]],
        )
        module = "%s.pool" % connection.settings_dict["ENGINE"]
        self.assertEqual(output, [True, True, module, 2, True])

    def test_imported_afterwards(self):
        output = self.run_source(
            """
            import importlib, json, sys

            import django_pool_patch

            base = importlib.import_module("%s.base" % sys.argv[1])
            creation = importlib.import_module("django.db.backends.base.creation")
            report = [
                base.DatabaseWrapper.connector_class.__module__,
                creation.BaseDatabaseCreation.clone_test_db.__name__,
                hasattr(creation.BaseDatabaseCreation.clone_test_db, "__wrapped__"),
            ]
            print(json.dumps(report))
            """,
            args=[connection.settings_dict["ENGINE"]],
        )
        module = "%s.pool" % connection.settings_dict["ENGINE"]
        self.assertEqual(output, [module, "clone_test_db", True])

    def test_wrapped_before_and_afterwards(self):
        """
        Instrumentation that wraps connect() is called, whether it comes before
        the package or after it.
        """
        source = """
            import json, sys

            from django.db.backends.base.base import BaseDatabaseWrapper

            calls = []

            def wrap(name):
                connect = BaseDatabaseWrapper.connect

                def wrapper(self):
                    calls.append(name)
                    return connect(self)

                BaseDatabaseWrapper.connect = wrapper

            wrap("before")
            import scripts

            scripts.configure()
            wrap("afterwards")
            from django.db import connection

            scripts.get_session(connection)
            connection.close()
            scripts.get_session(connection)
            print(json.dumps(calls))
            """
        self.assertEqual(
            self.run_source(source, POOL=False), ["afterwards", "before"] * 2
        )
        # What wraps the connecting itself isn't asked where there is none.
        self.assertEqual(self.run_source(source), ["afterwards"] * 2)

    def test_django_has_pools(self):
        """A Django that has the pool already isn't touched."""
        with tempfile.TemporaryDirectory() as directory:
            package = Path(directory, "pool")
            package.mkdir()
            (package / "__init__.py").write_text("is_djangos_own = True\n")
            output = self.run_source(
                """
                import json, logging, sys

                import django.db

                django.db.__path__.append(sys.argv[1])
                records = []
                handler = logging.Handler()
                handler.emit = records.append
                logger = logging.getLogger("django.db.pool")
                logger.addHandler(handler)
                logger.setLevel(logging.DEBUG)
                logger.propagate = False

                from django.db.backends.base.base import BaseDatabaseWrapper

                def snapshot():
                    paths = [
                        list(module.__path__)
                        for name, module in sorted(sys.modules.items())
                        if name.startswith("django.") and hasattr(module, "__path__")
                    ]
                    attributes = dict(vars(BaseDatabaseWrapper))
                    return paths, attributes, list(sys.meta_path)

                before = snapshot()
                import django_pool_patch

                django_pool_patch.install()
                is_unchanged = snapshot() == before

                import django.db.pool

                report = {
                    "is_unchanged": is_unchanged,
                    "is_djangos_own": django.db.pool.is_djangos_own,
                    "records": [
                        [record.levelname, record.getMessage()] for record in records
                    ],
                }
                print(json.dumps(report))
                """,
                args=[directory],
            )
        self.assertEqual(
            output,
            {
                "is_unchanged": True,
                "is_djangos_own": True,
                "records": [
                    [
                        "INFO",
                        "Django has connection pools of its own; nothing is patched.",
                    ]
                ],
            },
        )

    def test_invalid_setting(self):
        """What is wrong with POOL is said at first use, and not before."""
        output = self.run_source(
            """
            import json

            import scripts

            scripts.configure()
            from django.core.exceptions import ImproperlyConfigured
            from django.db import connection

            try:
                connection.ensure_connection()
            except ImproperlyConfigured as e:
                print(json.dumps(str(e)))
            """,
            POOL={"max_sise": 5},
        )
        self.assertEqual(
            output,
            "DATABASES['default']['POOL']: Unknown option 'max_sise'. Did you mean "
            "'max_size'?",
        )

    def test_modules(self):
        """New modules look as if they were Django's own."""
        output = self.run_source(
            """
            import importlib, json, pickle

            import scripts

            scripts.configure()
            from django.db.pool import PoolOptions, PoolTimeout, pools

            names = [
                "django.core.checks.pool",
                "django.db.backends.base.pool",
                "django.db.pool",
                "django.db.pool.core",
                "django.db.pool.threads",
            ]
            modules = [importlib.import_module(name) for name in names]
            objects = [
                PoolOptions,
                PoolTimeout,
                type(pools["default"].connector),
                pools["default"].stats(),
            ]
            copies = pickle.loads(pickle.dumps(objects))
            error = pickle.loads(pickle.dumps(PoolTimeout("Too late.")))
            report = {
                "names": [module.__name__ for module in modules] == names,
                "specs": [module.__spec__.name for module in modules] == names,
                "origins": [module.__spec__.origin for module in modules],
                "files": [module.__file__ for module in modules],
                "classes": PoolOptions.__module__,
                "identical": [a is b for a, b in zip(objects[:3], copies[:3])],
                "equal": objects == copies,
                "error": [type(error) is PoolTimeout, str(error)],
            }
            print(json.dumps(report))
            """,
        )
        self.assertEqual(output["files"], output["origins"])
        for origin in output.pop("origins"):
            self.assertIs(Path(origin).is_relative_to(DJANGO), True)
        del output["files"]
        self.assertEqual(
            output,
            {
                "names": True,
                "specs": True,
                "classes": "django.db.pool.options",
                "identical": [True, True, True],
                "equal": True,
                "error": [True, "Too late."],
            },
        )

    def test_app_config(self):
        output = self.run_source("""
            import json

            import scripts

            scripts.configure()
            from django.apps import apps

            config = apps.get_app_config("django_pool_patch")
            models = [model.__name__ for model in config.get_models()]
            print(json.dumps([config.name, str(config.verbose_name), models]))
            """)
        self.assertEqual(output, ["django_pool_patch", "Database connection pool", []])


# Prints what a life of connections without POOL means to the driver. Whether
# the package is installed tells the first argument.
TRACE = """
import importlib, json, sys

if sys.argv[1] == "installed":
    import django_pool_patch

import scripts

scripts.configure(INSTALLED_APPS=[])
assert ("django_pool_patch" in sys.modules) == (sys.argv[1] == "installed")
from django.core.signals import request_finished, request_started
from django.db import connection, transaction

calls = []


def record(owner, name):
    method = getattr(owner, name)

    def recorder(*args, **kwargs):
        shown = [arg for arg in args[1:] if isinstance(arg, (str, bytes, bool))]
        calls.append([owner.__name__, name, repr(shown), sorted(map(str, kwargs))])
        return method(*args, **kwargs)

    setattr(owner, name, recorder)


Database = connection.Database
if connection.vendor == "sqlite":
    connect = Database.connect

    def recording_connect(*args, **kwargs):
        calls.append(["connect", sorted(map(str, kwargs))])
        opened = connect(*args, **kwargs)
        opened.set_trace_callback(calls.append)
        return opened

    Database.connect = recording_connect
else:
    if connection.vendor == "mysql":
        cursors = importlib.import_module("MySQLdb.cursors")
        connection_class = importlib.import_module("MySQLdb.connections").Connection
        owners = {
            cursors.BaseCursor: ["execute", "executemany"],
            connection_class: [
                "__init__",
                "autocommit",
                "close",
                "commit",
                "ping",
                "query",
                "rollback",
            ],
        }
    elif hasattr(Database, "Connection"):
        owners = {
            Database.Cursor: ["execute", "executemany"],
            Database.Connection: ["close", "commit", "connect", "rollback"],
        }
    else:
        # The classes of psycopg2 can't be changed.
        owners = {}
    for owner, names in owners.items():
        for name in names:
            record(owner, name)



def record_statement(execute, sql, params, many, context):
    calls.append(["statement", sql])
    return execute(sql, params, many, context)


connection.execute_wrappers.append(record_statement)
for _ in range(2):
    request_started.send(sender=None)
    scripts.get_session(connection)
    with transaction.atomic():
        scripts.get_session(connection)
    try:
        with transaction.atomic():
            raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    connection.set_autocommit(False)
    scripts.get_session(connection)
    connection.rollback()
    connection.set_autocommit(True)
    request_finished.send(sender=None)
    calls.append(["is open", connection.connection is not None])
scripts.get_session(connection)
connection.close()
copy = connection.copy()
scripts.get_session(copy)
copy.close()
connection.close()
print(json.dumps(calls))
"""


@skipUnless(suite.get_leg() == "patched", "Django hasn't been patched.")
class StandingAsideTests(scripts.ScriptTestMixin, SimpleTestCase):
    databases = {"default"}

    def test_package_is_not_importable(self):
        """Nothing here works because of the package."""
        self.assertIsNone(importlib.util.find_spec("django_pool_patch"))

    def test_installed_app(self):
        """The app on a Django that has the series: it says so, and is idle."""
        output = self.run_script(
            """
import json, logging, sys

records = []
handler = logging.Handler()
handler.emit = records.append
logger = logging.getLogger("django.db.pool")
logger.addHandler(handler)
logger.setLevel(logging.DEBUG)
logger.propagate = False

from django.core.management import call_command
from django.db.backends.base.base import BaseDatabaseWrapper
import scripts

before = dict(vars(BaseDatabaseWrapper)), list(sys.meta_path)
sys.path.append(sys.argv[1])
scripts.configure(INSTALLED_APPS=["django_pool_patch"], LOGGING_CONFIG=None)
import django_pool_patch

django_pool_patch.install()
messages = [[record.levelname, record.getMessage()] for record in records]
call_command("check")
from django.db import connection
from django.db.pool import pools

scripts.get_session(connection)
report = {
    "is_unchanged": before == (dict(vars(BaseDatabaseWrapper)), list(sys.meta_path)),
    "messages": messages,
    "in_use": pools["default"].stats().in_use,
}
print(json.dumps(report))
""",
            {"default": scripts.get_database(connection, POOL=True)},
            args=[str(suite.ROOT)],
        )
        message = "Django has connection pools of its own; nothing is patched."
        self.assertEqual(
            output,
            {"is_unchanged": True, "messages": [["INFO", message]], "in_use": 1},
        )


class WithoutPoolTests(scripts.ScriptTestMixin, SimpleTestCase):
    """Without POOL, everything is as it has always been."""

    databases = {"default"}

    @needs_overlay
    def test_same_statements(self):
        for extra in [
            {},
            {"POOL": False},
            {"CONN_MAX_AGE": None},
            {"CONN_MAX_AGE": 60, "CONN_HEALTH_CHECKS": True},
        ]:
            with self.subTest(**extra):
                databases = {"default": scripts.get_database(connection, **extra)}
                unpatched = self.run_script(TRACE, databases, args=["absent"])
                patched = self.run_script(TRACE, databases, args=["installed"])
                self.assertGreater(len(unpatched), 10)
                self.assertEqual(patched, unpatched)

    def test_no_pool(self):
        for setting in [{}, {"POOL": False}, {"POOL": None}]:
            with self.subTest(setting=setting):
                output = self.run_script(
                    textwrap.dedent("""
                    import json

                    import scripts

                    scripts.configure()
                    from django.db import connection
                    from django.db.pool import pools

                    def look_up(alias):
                        try:
                            return pools[alias]
                        except KeyError as e:
                            return e.args[0]

                    scripts.get_session(connection)
                    report = [
                        connection.connection_pool,
                        list(pools),
                        look_up("default"),
                        look_up("absent"),
                    ]
                    print(json.dumps(report))
                    """),
                    {"default": scripts.get_database(connection, **setting)},
                )
                self.assertEqual(
                    output,
                    [
                        None,
                        [],
                        "The database 'default' has no pool. Write \"POOL\": True "
                        "into DATABASES['default'] (databases in memory are never "
                        "pooled).",
                        "There is no database 'absent' in settings.DATABASES. Use "
                        "one of: default.",
                    ],
                )

    def test_unknown_alias(self):
        msg = "There is no database 'absent' in settings.DATABASES. Use one of: %s." % (
            ", ".join(connections.settings)
        )
        with self.assertRaises(KeyError) as cm:
            pools["absent"]
        self.assertEqual(cm.exception.args, (msg,))

    def test_known_alias(self):
        self.assertIs(pools["default"], connection.connection_pool)
        self.assertIn("default", list(pools))


def parse(path):
    return ast.parse(path.read_text(), filename=str(path))


def find_imports(tree, package):
    """Return the absolute names of what a module of `package` imports."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            names.update("%s.%s" % (base, alias.name) for alias in node.names)
    return names


class StructureTests(SimpleTestCase):
    def get_pool_imports(self, module):
        path = DJANGO / "db" / "pool" / ("%s.py" % module)
        return find_imports(parse(path), "django.db.pool")

    def test_directions(self):
        """Dependencies within django.db.pool go one way only."""
        for path in sorted((DJANGO / "db" / "pool").glob("*.py")):
            with self.subTest(module=path.stem):
                self.assertIn(path.stem, POOL_MODULES)
                allowed = POOL_MODULES[: POOL_MODULES.index(path.stem)]
                for name in self.get_pool_imports(path.stem):
                    if name.startswith("django.db.pool."):
                        self.assertIn(name.split(".")[3], allowed)

    def test_django_doesnt_need_backends(self):
        """The pools know nothing of Django's backends."""
        for module in POOL_MODULES:
            path = DJANGO / "db" / "pool" / ("%s.py" % module)
            if not path.exists():
                continue
            with self.subTest(module=module):
                for name in self.get_pool_imports(module):
                    self.assertIs(name.startswith("django.db.backends"), False, name)

    def test_core(self):
        """The core has no I/O, no clock, no threads, and little of Django."""
        for name in self.get_pool_imports("core"):
            with self.subTest(name=name):
                root = name.split(".")[0]
                self.assertIn(root, {*sys.stdlib_module_names, "django"})
                self.assertNotIn(
                    root,
                    {
                        "_thread",
                        "asyncio",
                        "concurrent",
                        "datetime",
                        "io",
                        "logging",
                        "os",
                        "queue",
                        "select",
                        "selectors",
                        "socket",
                        "threading",
                        "time",
                    },
                )
                if root == "django":
                    self.assertIs(name.startswith("django.db.pool."), True)

    def test_no_type_hints(self):
        for path in sorted(DJANGO.rglob("*.py")):
            if suite.get_leg() != "overlay" and "pool" not in path.parts:
                continue
            with self.subTest(path=str(path.relative_to(DJANGO))):
                for node in ast.walk(parse(path)):
                    self.assertNotIsInstance(node, ast.AnnAssign)
                    if isinstance(node, ast.arg):
                        self.assertIsNone(node.annotation)
                    elif isinstance(node, (ast.AsyncFunctionDef, ast.FunctionDef)):
                        self.assertIsNone(node.returns)

    def test_files_are_readable(self):
        """New files are plain modules at the paths that they have upstream."""
        for path in sorted((DJANGO / "db" / "pool").glob("*.py")):
            self.assertIs(os.access(path, os.R_OK), True)
            self.assertTrue(ast.get_docstring(parse(path)), path)
