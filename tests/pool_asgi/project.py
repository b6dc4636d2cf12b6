"""
A project that servers run, with the database of the environment, see
scripts.get_environment().
"""

import suite

import scripts

scripts.configure(
    ALLOWED_HOSTS=["*"],
    INSTALLED_APPS=[
        *(["django_pool_patch"] if suite.get_leg() == "overlay" else []),
        "pool_asgi",
    ],
    # To stderr, where the tests look for what nobody should have to say.
    LOGGING={
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {"console": {"class": "logging.StreamHandler"}},
        "root": {"handlers": ["console"], "level": "WARNING"},
    },
    MIDDLEWARE=[],
    ROOT_URLCONF="pool_asgi.views",
    SECRET_KEY="not-secret-in-tests",
)

from private_database import Meter  # NOQA: E402

from django.db.pool import pools  # NOQA: E402

meter = Meter(pools["default"])
meter.__enter__()
