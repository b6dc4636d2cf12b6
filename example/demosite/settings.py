"""
Settings of the demo site.

The environment variable POOL_DEMO_MODE says how the site gets its database
connections; nothing else differs between the modes:

none
    A connection for each request, which is Django's default.
options
    The driver's pool, OPTIONS["pool"], which Django has for PostgreSQL.
pool
    The pool of django_pool_patch: one more app and one more key.

PGHOST, PGPORT, PGDATABASE, PGUSER and PGPASSWORD say which database.
"""

import os
import sys
from pathlib import Path

from django.core.exceptions import ImproperlyConfigured

# The package lies next to this directory. It goes to the end of the path, so
# that an installed django_pool_patch is preferred.
sys.path.append(str(Path(__file__).resolve().parent.parent.parent))

MODE = os.environ.get("POOL_DEMO_MODE", "pool")

INSTALLED_APPS = ["guestbook"]

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "HOST": os.environ.get("PGHOST", "127.0.0.1"),
        "PORT": os.environ.get("PGPORT", "5432"),
        "NAME": os.environ.get("PGDATABASE", "demo"),
        "USER": os.environ.get("PGUSER", "demo"),
        "PASSWORD": os.environ.get("PGPASSWORD", ""),
        "CONN_MAX_AGE": 0,
    }
}

if MODE == "options":
    DATABASES["default"]["OPTIONS"] = {"pool": {"min_size": 0, "max_size": 10}}
elif MODE == "pool":
    INSTALLED_APPS = ["django_pool_patch", "guestbook"]
    DATABASES["default"]["POOL"] = {"max_size": 10}
elif MODE != "none":
    raise ImproperlyConfigured(
        "POOL_DEMO_MODE must be none, options or pool, not %r." % MODE
    )

ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
ASGI_APPLICATION = "demosite.asgi.application"
DEBUG = False
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
# CommonMiddleware sets Content-Length; more would only be measured along.
MIDDLEWARE = ["django.middleware.common.CommonMiddleware"]
ROOT_URLCONF = "demosite.urls"
# The site has no sessions and nothing to sign.
SECRET_KEY = os.environ.get("SECRET_KEY", "nothing is signed with this")
USE_TZ = True
WSGI_APPLICATION = "demosite.wsgi.application"

# An overloaded database makes hundreds of errors per second. One line each
# keeps the log from being what is measured.
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"one_line": {"()": "demosite.logs.OneLineFormatter"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "one_line"}},
    "loggers": {
        "django": {"handlers": ["stderr"], "level": "WARNING", "propagate": False},
        "psycopg.pool": {"handlers": ["stderr"], "level": "ERROR"},
    },
}
