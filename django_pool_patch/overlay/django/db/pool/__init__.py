"""
Connection pools.

A pool lends connections and takes them back. DatabaseWrapper uses the pool of
its alias when DATABASES says POOL. Pools work without Django's settings too:
ConnectionPool needs nothing but a connector.
"""

from .asyncio import AsyncConnectionPool
from .base import BaseConnector, BasePool
from .exceptions import PoolClosed, PoolError, PoolFull, PoolTimeout
from .options import PoolOptions
from .registry import pools
from .scope import aconnection, apools
from .stats import PoolStats
from .threads import ConnectionPool, NullPool

__all__ = [
    "AsyncConnectionPool",
    "BaseConnector",
    "BasePool",
    "ConnectionPool",
    "NullPool",
    "PoolClosed",
    "PoolError",
    "PoolFull",
    "PoolOptions",
    "PoolStats",
    "PoolTimeout",
    "aconnection",
    "apools",
    "pools",
]
