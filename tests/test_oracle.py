"""
Settings for Oracle, on the server that POOL_TEST_ORACLE_DSN names. Its user
must be allowed to create users and tablespaces.
"""

import os
import re

from settings_common import *  # NOQA: F401, F403
from settings_common import with_pool

from django.core.exceptions import ImproperlyConfigured


def get_database(dsn, alias):
    match = re.fullmatch(
        r"(?P<user>[^/]+)/(?P<password>.+)@(?P<name>[^@/]+(:\d+)?/[^@/]+)", dsn
    )
    if match is None:
        raise ImproperlyConfigured(
            "The tests on Oracle need a server: set POOL_TEST_ORACLE_DSN to "
            "user/password@host:port/service, e.g. to that of a container with "
            "Oracle Database Free."
        )
    prefix = "test_pool_%s" % alias
    return {
        "ENGINE": "django.db.backends.oracle",
        # With HOST and PORT, Django would take NAME for a SID.
        "NAME": match["name"],
        "USER": match["user"],
        "PASSWORD": match["password"],
        "TEST": {
            # In Oracle, users and tablespaces are what separates databases.
            "USER": prefix,
            "TBLSPACE": prefix,
            "TBLSPACE_TMP": "%s_temp" % prefix,
        },
    }


dsn = os.environ.get("POOL_TEST_ORACLE_DSN", "")

DATABASES = with_pool(
    default=get_database(dsn, "default"),
    other=get_database(dsn, "other"),
)
