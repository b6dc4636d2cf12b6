"""
What runtests.py, pytest and the settings modules know about the test suite:
where its test apps are and which Django they test.

Nothing here imports a part of Django that needs settings.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# The directories that hold test apps. The second has the tests that the patch
# adds to Django's own suite.
TEST_DIRECTORIES = [
    ROOT / "tests",
    ROOT / "django_pool_patch" / "overlay" / "tests",
]

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


def add_to_sys_path():
    """Make the package and all test apps importable. Idempotent."""
    for directory in [*reversed(TEST_DIRECTORIES), ROOT]:
        if directory.is_dir() and str(directory) not in sys.path:
            sys.path.insert(0, str(directory))


def get_test_apps():
    """Return the sorted names of all test apps."""
    apps = {}
    for directory in TEST_DIRECTORIES:
        if not directory.is_dir():
            continue
        for path in directory.iterdir():
            if not (path / "__init__.py").is_file():
                continue
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
    for directory in [Path.cwd(), *TEST_DIRECTORIES]:
        candidate = (directory / path).resolve()
        for root in TEST_DIRECTORIES:
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
