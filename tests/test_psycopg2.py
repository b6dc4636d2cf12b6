"""
Settings for PostgreSQL with psycopg2, also where psycopg 3 is installed.
"""

import sys

# Importing it fails from now on, as if it weren't there.
sys.modules["psycopg"] = None

from test_postgresql import *  # NOQA: E402, F401, F403
