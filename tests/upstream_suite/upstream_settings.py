"""
Settings for Django's own test suite. What differs from run to run is in the
environment, see tests/upstream.py.

Only what is in this directory is on the path of those runs, besides Django and
the package: Django's test apps have names like ours.
"""

import json
import multiprocessing
import os

# What Django tests itself by, next to its runtests.py.
from test_sqlite import *  # NOQA: F401, F403

DATABASES = json.loads(os.environ["UPSTREAM_DATABASES"])

if os.environ["UPSTREAM_LEG"] == "overlay":
    # Not by INSTALLED_APPS, which the suite replaces.
    from django_pool_patch import install

    install()

# Not the default of this Python: that differs between versions. A process that
# was spawned has it already.
multiprocessing.set_start_method(os.environ["UPSTREAM_START_METHOD"], force=True)

TEST_RUNNER = "upstream_runner.RecordingRunner"
