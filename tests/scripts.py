"""
Run scripts in processes of their own, for tests of what can happen to a
process only once: installing, forking, ending.
"""

import json
import os
import subprocess
import sys
import tempfile

import suite

# Seconds. Nothing takes that long unless it hangs.
TIMEOUT = 60

DATABASES_VARIABLE = "POOL_TEST_DATABASES"

CONNECTION_SETTINGS = ["ENGINE", "NAME", "USER", "PASSWORD", "HOST", "PORT", "OPTIONS"]

# Python's options for scripts: warnings are errors, but for what Python thinks
# of forking where there are threads, which is what is tested.
WARNING_OPTIONS = [
    "-Xdev",
    "-Werror",
    "-Wignore:This process:DeprecationWarning",
]


def get_database(connection, **extra):
    """Return what a script needs of a wrapper's settings, and `extra` ones."""
    database = {name: connection.settings_dict[name] for name in CONNECTION_SETTINGS}
    database["NAME"] = str(database["NAME"])
    return {**database, **extra}


def get_environment(databases=None, **variables):
    """Return the environment for a script that uses some databases."""
    return {
        **os.environ,
        # What this process found, the script finds too: Django, the tests and
        # the package.
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "PYTHONDONTWRITEBYTECODE": "1",
        DATABASES_VARIABLE: json.dumps(databases or {}),
        **variables,
    }


def run_script(source, databases=None, options=WARNING_OPTIONS, args=(), **variables):
    """
    Run Python's `source`, or the module of that name, in a new interpreter.

    Return a CompletedProcess with its output as text. The script has nothing
    of the settings of this process but what configure() reads.
    """
    is_module = source.replace(".", "").isidentifier()
    env = get_environment(databases, **variables)
    env.pop("DJANGO_SETTINGS_MODULE", None)
    return subprocess.run(
        [sys.executable, *options, "-m" if is_module else "-c", source, *args],
        env=env,
        cwd=tempfile.gettempdir(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        timeout=TIMEOUT,
    )


def configure(**options):
    """Set Django up in a script, with the databases of its environment."""
    import django
    from django.conf import settings

    databases = json.loads(os.environ[DATABASES_VARIABLE])
    apps = ["django_pool_patch"] if suite.get_leg() == "overlay" else []
    settings.configure(
        **{"DATABASES": databases, "INSTALLED_APPS": apps, "USE_TZ": False, **options}
    )
    django.setup()


def get_session(connection):
    """
    Return what identifies the session of a wrapper: the server's number for
    it, or the connection object's where there is no server.
    """
    sql = {
        "mysql": "SELECT CONNECTION_ID()",
        "postgresql": "SELECT pg_backend_pid()",
    }.get(connection.vendor, "SELECT 1")
    with connection.cursor() as cursor:
        cursor.execute(sql)
        (number,) = cursor.fetchone()
    return id(connection.connection) if connection.vendor == "sqlite" else number


class ScriptTestMixin:
    def run_script(self, source, databases=None, **kwargs):
        """
        Run a script that must succeed silently, and return the JSON value that
        the last line of its output is.
        """
        result = run_script(source, databases, **kwargs)
        report = "%s\n%s" % (result.stdout, result.stderr)
        self.assertEqual(result.returncode, 0, report)
        self.assertEqual(result.stderr, "", report)
        lines = result.stdout.splitlines()
        return json.loads(lines[-1]) if lines else None
