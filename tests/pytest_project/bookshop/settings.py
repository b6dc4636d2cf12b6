"""
Settings of a project as there are many, with a pool.

POOL_TEST_DATABASES is DATABASES as JSON.
"""

import json
import os
import sys

import suite

if os.environ.get("POOL_TEST_DRIVER") == "psycopg2":
    # Importing it fails from now on, as if it weren't there.
    sys.modules["psycopg"] = None

DATABASES = json.loads(os.environ["POOL_TEST_DATABASES"])

# All that a project has to do for the pool, where Django has none itself.
POOL_APPS = ["django_pool_patch"] if suite.get_leg() == "overlay" else []

INSTALLED_APPS = [
    *POOL_APPS,
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "books",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
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
ROOT_URLCONF = "bookshop.urls"
STATIC_URL = "static/"
SECRET_KEY = "not-secret-in-tests"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
TIME_ZONE = "UTC"
# What post_migrate brings back after each flush mustn't be restored as well.
TEST_NON_SERIALIZED_APPS = ["django.contrib.auth", "django.contrib.contenttypes"]
