"""What a pool raises. All of it is an OperationalError to the caller."""

from django.db.utils import OperationalError


class PoolError(OperationalError):
    """Something is wrong with a pool, or with the way it is used."""


class PoolTimeout(PoolError):
    """
    No connection became free in time.

    The message tells size, holders and remedy. __cause__ is the last error
    met while connecting, when there was one.
    """


class PoolClosed(PoolError):
    """The pool was closed, before or while waiting for a connection."""


class PoolFull(PoolError):
    """More callers than max_waiting would be waiting for a connection."""
