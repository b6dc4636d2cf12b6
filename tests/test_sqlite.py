"""
Settings for SQLite. The databases are files: databases in memory bypass the
pool.
"""

import atexit
import os
import shutil
import tempfile

from settings_common import *  # NOQA: F401, F403
from settings_common import with_pool


def get_directory():
    # Child processes must use the same files.
    if "POOL_TEST_SQLITE" not in os.environ:
        directory = tempfile.mkdtemp(prefix="pool-sqlite-")
        os.environ["POOL_TEST_SQLITE"] = directory
        atexit.register(remove_directory, directory, os.getpid())
    return os.environ["POOL_TEST_SQLITE"]


def remove_directory(directory, owner_pid):
    if os.getpid() == owner_pid:
        shutil.rmtree(directory, ignore_errors=True)


def get_database(alias):
    directory = get_directory()
    return {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.path.join(directory, "%s.sqlite3" % alias),
        "TEST": {"NAME": os.path.join(directory, "test_%s.sqlite3" % alias)},
    }


DATABASES = with_pool(default=get_database("default"), other=get_database("other"))
