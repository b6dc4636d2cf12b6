"""Finding the pool of an alias; what befalls all pools: forks and the end."""

import atexit
import copy
import logging
import os
import threading
from time import monotonic

import django.db
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

from .base import BasePool, live_pools
from .options import PoolOptions

logger = logging.getLogger("django.db.pool")

# Settings dicts to remember the pool of. There are as many as aliases, and one
# more for each copy of a wrapper.
MAX_FOUND = 100

# Seconds that the interpreter's exit may be delayed for closing connections.
EXIT_TIMEOUT = 2.0


class PoolRegistry:
    """
    The pools of this process, by alias.

    A pool belongs to what its alias connects to. When that changes, as when
    the test runner puts a test database in place, the alias gets a new pool,
    and the old one is closed.
    """

    def __init__(self):
        self._forget()

    def _forget(self):
        # Guards changes of the two dicts. Pools are made while it's held,
        # which opens nothing, but they are closed without it.
        self._lock = threading.Lock()
        # All pools by what they connect to.
        self._pools = {}
        # What was found for a settings dict: {id: (dict, copy, class, pool)}.
        # Settings are compared with the copy, for they change in place.
        self._found = {}

    def __getitem__(self, alias):
        """
        Return the pool of `alias`, opening nothing.

        Raise KeyError naming the remedy if there is none.
        """
        if alias not in django.db.connections.settings:
            raise KeyError(
                "There is no database '%s' in settings.DATABASES. Use one of: %s."
                % (alias, ", ".join(django.db.connections.settings))
            )
        pool = django.db.connections[alias].connection_pool
        if pool is None:
            raise KeyError(
                "The database '%s' has no pool. Write \"POOL\": True into "
                "DATABASES['%s'] (databases in memory are never pooled)."
                % (alias, alias)
            )
        return pool

    def __iter__(self):
        """Iterate over the aliases that have a pool."""
        return (
            alias
            for alias in django.db.connections.settings
            if django.db.connections[alias].connection_pool is not None
        )

    def for_wrapper(self, wrapper):
        """
        Return the pool for a DatabaseWrapper, made if need be, or None if its
        database isn't pooled.

        Raise ImproperlyConfigured if POOL is invalid.
        """
        # Asked at each request, so what is known comes first.
        settings_dict = wrapper.settings_dict
        found = self._found.get(id(settings_dict))
        if found is not None:
            known_dict, known_copy, known_class, pool = found
            if (
                known_dict is settings_dict
                and known_copy == settings_dict
                and known_class is type(wrapper)
                and pool.name == wrapper.alias
            ):
                return pool
        return self._find(wrapper, settings_dict)

    def for_loop(self, alias, loop):
        """
        Return the AsyncConnectionPool of `alias` for a running event loop.

        Raise KeyError naming the remedy if there is none, and PoolError if the
        alias's pool can't serve tasks.
        """
        settings_dict = django.db.connections.settings.get(alias)
        found = self._found.get(id(settings_dict))
        # Most often it's known, and the thread needs no wrapper.
        if (
            found is not None
            and found[0] is settings_dict
            and found[1] == settings_dict
            and found[3].name == alias
        ):
            pool = found[3]
        else:
            pool = self[alias]
        # Other pools have none, which the constructor below complains of.
        loops = getattr(pool, "loops", {})
        if (async_pool := loops.get(loop)) is None:
            async_pool = django.db.connections[alias].async_pool_class(pool=pool)
            # Nobody is told of the end of a loop, so it's found out now.
            for other in list(loops):
                if other.is_closed():
                    loops.pop(other, None)
                    async_pool._withdraw_of_closed_loops()
            loops[loop] = async_pool
        return async_pool

    def _find(self, wrapper, settings_dict):
        if not PoolOptions.enabled(settings_dict.get("POOL")):
            return None
        connector_class = wrapper.connector_class
        if connector_class is None or not connector_class.can_pool(wrapper):
            return None
        key = (wrapper.alias, type(wrapper), _freeze(identity(settings_dict)))
        with self._lock:
            pool = self._pools.get(key)
            if pool is None:
                pool = make_pool(wrapper)
                self._pools[key] = pool
            replaced = self._found.get(id(settings_dict))
            test = settings_dict.get("TEST")
            if len(self._found) >= MAX_FOUND:
                self._found.clear()
            self._found[id(settings_dict)] = (
                settings_dict,
                # TEST doesn't matter: the same dict is compared in no time.
                copy.deepcopy(settings_dict, {id(test): test}),
                type(wrapper),
                pool,
            )
        if (
            replaced is not None
            and replaced[0] is settings_dict
            and replaced[3] is not pool
            and replaced[3].name == wrapper.alias
        ):
            self.close_pool(replaced[3], timeout=0)
        return pool

    def close_pool(self, pool, timeout=1.0):
        """Close and forget a pool. Who asks for it again gets a new one."""
        with self._lock:
            self._pools = {
                key: value for key, value in self._pools.items() if value is not pool
            }
            self._found = {
                key: found for key, found in self._found.items() if found[3] is not pool
            }
        pool.close(timeout=timeout)

    def close_database(self, settings_dict):
        """
        Close the pools, of any alias, that are connected to a database.

        It's to be dropped, copied or renamed, which servers refuse while
        others are connected.
        """
        place = _place(settings_dict)
        for pool in list(self._pools.values()):
            if _place(pool.connector.settings_dict) == place:
                self.close_pool(pool)

    def after_fork_in_child(self):
        """Have all pools start afresh."""
        self._lock = threading.Lock()
        for pool in list(live_pools):
            try:
                pool.after_fork_in_child()
            except Exception:
                # The other pools have to start afresh all the same.
                logger.exception("%r can't be used after a fork.", pool)

    def close_all(self, timeout=EXIT_TIMEOUT):
        """
        Say goodbye to the servers, within `timeout` seconds in all.

        What other threads have in use is left alone: closing a connection
        while it's used can crash a driver.
        """
        deadline = monotonic() + timeout
        # Without settings there are no wrappers, but there may be pools.
        wrappers = (
            django.db.connections.all(initialized_only=True)
            if settings.configured
            else []
        )
        for connection in wrappers:
            try:
                if connection.connection_pool is not None:
                    connection.close()
            except Exception:
                # There is nobody left to tell.
                logger.debug("Closing %r at exit failed.", connection, exc_info=True)
        for pool in list(live_pools):
            if monotonic() < deadline:
                pool.close(timeout=0)


def make_pool(wrapper):
    """
    Return a new pool for what a DatabaseWrapper connects to.

    Raise ImproperlyConfigured if POOL is invalid.
    """
    settings_dict = wrapper.settings_dict
    alias = wrapper.alias
    if problems := setting_problems(settings_dict, alias):
        raise ImproperlyConfigured(" ".join(problems))
    pool_class = find_pool_class(wrapper)
    setting = settings_dict["POOL"]
    options = {} if setting is True else setting
    return pool_class(wrapper.connector_class(wrapper), name=alias, **options)


def find_pool_class(wrapper):
    """
    Return the class that POOL's "pool_class" names, or the backend's.

    Raise ImproperlyConfigured if it can't be imported, or isn't a pool.
    """
    setting = wrapper.settings_dict["POOL"]
    named = None if setting is True else setting.get("pool_class")
    if named is None:
        return wrapper.pool_class
    pool_class = named
    if isinstance(named, str):
        try:
            pool_class = import_string(named)
        except ImportError as e:
            raise ImproperlyConfigured(
                "DATABASES['%s']['POOL']: pool_class %r can't be imported: %s. "
                "Install its package, or correct the path." % (wrapper.alias, named, e)
            ) from e
    if not (isinstance(pool_class, type) and issubclass(pool_class, BasePool)):
        raise ImproperlyConfigured(
            "DATABASES['%s']['POOL']: pool_class %r isn't a subclass of "
            "django.db.pool.BasePool. Name one that is, or remove 'pool_class'."
            % (wrapper.alias, named)
        )
    return pool_class


def setting_problems(settings_dict, alias):
    """Return a list of sentences on what is wrong with an alias's POOL."""
    setting = settings_dict.get("POOL")
    if not PoolOptions.enabled(setting):
        return []
    problems = [
        "DATABASES['%s']['POOL']: %s" % (alias, problem)
        for problem in PoolOptions.setting_problems(setting)
    ]
    if settings_dict.get("CONN_MAX_AGE", 0) != 0:
        problems.append(
            "DATABASES['%s']: POOL doesn't support persistent connections. Remove "
            "CONN_MAX_AGE, or set it to 0; POOL's max_lifetime limits a "
            "connection's age." % alias
        )
    if (settings_dict.get("OPTIONS") or {}).get("pool"):
        problems.append(
            "DATABASES['%s']: POOL and OPTIONS['pool'] exclude each other. Remove "
            "OPTIONS['pool']; its options can be written into POOL." % alias
        )
    return problems


def _place(settings_dict):
    """Return what tells one database from another."""
    return tuple(
        str(settings_dict.get(name) or "")
        for name in ("ENGINE", "HOST", "PORT", "NAME")
    )


def identity(settings_dict):
    """Return the settings that make for a pool of its own."""
    # The password is read anew for each connection, for it may be rotated.
    # Whoever connects as somebody else has another user.
    return {
        name: value
        for name, value in settings_dict.items()
        if name not in {"PASSWORD", "TEST", "ATOMIC_REQUESTS"}
    }


def _freeze(value):
    """Return something hashable that is equal for equal settings."""
    if isinstance(value, dict):
        return frozenset((key, _freeze(item)) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(_freeze(item) for item in value)
    if isinstance(value, (set, frozenset)):
        return frozenset(_freeze(item) for item in value)
    try:
        hash(value)
    except TypeError:
        return (type(value), id(value))
    return value


pools = PoolRegistry()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=pools.after_fork_in_child)
atexit.register(pools.close_all)
