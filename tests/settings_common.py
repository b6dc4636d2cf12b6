"""
What the settings modules for the databases have in common.
"""

import json
import os

import suite

suite.add_to_sys_path()

INSTALLED_APPS = [*suite.get_always_installed_apps(), *suite.get_test_apps()]
MIDDLEWARE = suite.ALWAYS_MIDDLEWARE
ROOT_URLCONF = "urls"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    }
]
LANGUAGE_CODE = "en"
SITE_ID = 1
STATIC_URL = "static/"
# Without their migrations, creating the test databases is much faster.
MIGRATION_MODULES = {
    "auth": None,
    "contenttypes": None,
    "sessions": None,
    "sites": None,
}
SILENCED_SYSTEM_CHECKS = [
    # django.contrib.postgres must be installed to use its features.
    "postgres.E005",
]
SECRET_KEY = "not-secret-in-tests"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
USE_TZ = False


def get_pool_options():
    """
    Return POOL for the tests. POOL_TEST_OPTIONS is JSON, e.g. '{"mode":
    "transaction"}', or 'false' for comparing with a Django without the pool.
    """
    if options := os.environ.get("POOL_TEST_OPTIONS"):
        return json.loads(options)
    # A test that waits for a connection in vain should fail soon.
    return {"timeout": 10.0}


def with_pool(**databases):
    """
    Return DATABASES with POOL added to each.

    The pool is installed here and not at the import of this module: an atexit
    handler that runs before those of the pool would take the server away from
    it. Handlers run in reverse order, so the server has to be there first.
    """
    options = get_pool_options()
    suite.install_pool()
    if options is not False:
        for database in databases.values():
            database["POOL"] = options
    return databases
