"""
Settings for PostgreSQL, on a private server that ends with the tests.

Set POOL_TEST_POSTGRESQL for using another server, see servers.py.
"""

from servers import shared_server
from settings_common import *  # NOQA: F401, F403
from settings_common import with_pool

server = shared_server("postgresql")

DATABASES = with_pool(
    default=server.settings("django_pool"),
    other=server.settings("django_pool_other"),
)
