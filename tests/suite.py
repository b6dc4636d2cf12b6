"""
What runtests.py, pytest and the settings modules know about the test suite:
where its test apps are and which Django they test.

Nothing here imports a part of Django that needs settings.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

TESTS = ROOT / "tests"
# The tests that the patch adds to Django's own suite.
OVERLAY_TESTS = ROOT / "django_pool_patch" / "overlay" / "tests"

ALWAYS_INSTALLED_APPS = [
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "django.contrib.sites",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.admin.apps.SimpleAdminConfig",
    "django.contrib.staticfiles",
]

ALWAYS_MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]


def get_upstream_tests():
    """
    Return the directory with the tests that the patch adds: with those that it
    did add, in a patched source tree.
    """
    if get_leg() == "patched":
        import django

        directory = Path(django.__file__).parent.parent / "tests"
        if all((directory / path.name).is_dir() for path in find_apps(OVERLAY_TESTS)):
            return directory
    return OVERLAY_TESTS


def find_apps(directory):
    """Return the paths of the test apps in a directory."""
    return [path.parent for path in sorted(directory.glob("*/__init__.py"))]


def add_to_sys_path():
    """
    Make all test apps and scripts importable, and the package where it's
    tested. In the other leg nothing may be found in it. Idempotent.
    """
    path = [str(TESTS), str(get_upstream_tests()), str(ROOT / "scripts")]
    if get_leg() == "overlay":
        path.append(str(ROOT))
    # The script's directory is among the others.
    others = [entry for entry in sys.path if entry not in {*path, str(ROOT)}]
    sys.path[:] = path + others


def get_test_apps():
    """Return the sorted names of all test apps."""
    upstream_tests = get_upstream_tests()
    apps = {}
    for path in [
        *find_apps(TESTS),
        # A source tree has all of Django's test apps.
        *[upstream_tests / path.name for path in find_apps(OVERLAY_TESTS)],
    ]:
        if path.name in apps:
            raise RuntimeError(
                "There are two test apps named %s: %s and %s."
                % (path.name, apps[path.name], path)
            )
        apps[path.name] = path
    return sorted(apps)


def get_dotted_label(label):
    """
    Return a test label as a dotted name, starting with the test app. Paths
    are accepted too, for the sake of the shell's completion.
    """
    path = Path(label)
    if not (len(path.parts) > 1 or label.endswith(("/", ".py"))):
        return label
    for directory in [Path.cwd(), TESTS, OVERLAY_TESTS]:
        candidate = (directory / path).resolve()
        for root in [TESTS, OVERLAY_TESTS]:
            if candidate.exists() and candidate.is_relative_to(root):
                parts = candidate.relative_to(root).with_suffix("").parts
                return ".".join(parts)
    raise RuntimeError("Test label path %s does not exist" % label)


def get_leg():
    """
    Return how the pool gets into Django: as the overlay, or because this
    Django has been patched.
    """
    import django

    if (Path(django.__file__).parent / "db" / "pool").is_dir():
        return "patched"
    return "overlay"


def get_always_installed_apps():
    apps = list(ALWAYS_INSTALLED_APPS)
    if get_leg() == "overlay":
        apps.append("django_pool_patch")
    return apps


def install_pool():
    """Give Django the pool, unless it has been patched."""
    if get_leg() == "overlay":
        from django_pool_patch import install

        install()
