"""
The overlay's installer: the only code that replaces anything in Django.

New modules come from overlay/django/, by way of their packages' __path__, so
they have the names and specs that they would have in Django, and Django's own
modules win once there are any. What existing modules need is attached to them
as they are imported: a few early returns and attributes, listed in EDITS, and
the same as in the diffs.
"""

from __future__ import annotations

import functools
import gc
import importlib
import importlib.machinery
import importlib.util
import logging
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

OVERLAY = Path(__file__).parent / "overlay" / "django"

# Packages of Django that get new modules.
EXTENDED_PACKAGES = [
    "django.core.checks",
    "django.db",
    "django.db.backends.base",
    "django.db.backends.mysql",
    "django.db.backends.oracle",
    "django.db.backends.postgresql",
    "django.db.backends.sqlite3",
]

logger = logging.getLogger("django.db.pool")

_is_installed = False


def install() -> None:
    """
    Add the pool to Django.

    Doing it again does nothing, and neither does doing it to a Django that has
    the pool already. Call it in a settings module when INSTALLED_APPS may be
    replaced, or django.setup() never be called.
    """
    global _is_installed
    if _is_installed:
        return
    _is_installed = True
    if importlib.util.find_spec("django.db.pool") is not None:
        logger.info("Django has connection pools of its own; nothing is patched.")
        return
    for name in EXTENDED_PACKAGES:
        package = importlib.import_module(name)
        package.__path__.append(str(OVERLAY.joinpath(*name.split(".")[1:])))
    sys.meta_path.insert(0, _EditingFinder())
    base = sys.modules.get("django.db.backends.base.base")
    for name, edit in EDITS.items():
        if name in sys.modules:
            edit(sys.modules[name])
    if base is not None:
        _set_up_existing(base.BaseDatabaseWrapper)


class _EditingFinder:
    """Find modules like Python does, and edit those of EDITS after loading."""

    @staticmethod
    def find_spec(
        name: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        edit = EDITS.get(name)
        if edit is None:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        @functools.wraps(load)
        def load_and_edit(module: ModuleType) -> None:
            load(module)
            edit(module)

        spec.loader.exec_module = load_and_edit  # type: ignore[method-assign]
        return spec


# The edits, by the module that they are made to.


def _edit_base(module: Any) -> None:
    from django.db.backends.base import lending, pool, pooled_cursors
    from django.db.pool import AsyncConnectionPool, ConnectionPool, pools
    from django.utils.asyncio import async_unsafe

    wrapper_class = module.BaseDatabaseWrapper
    _leave_nodb_cursor_unpooled(wrapper_class)
    init = wrapper_class.__init__
    connect = wrapper_class.connect
    close = wrapper_class.close

    @functools.wraps(init)
    def init_and_set_up(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        lending.set_up(self)

    @async_unsafe  # type: ignore[untyped-decorator]
    @functools.wraps(connect)
    def connect_or_borrow(self: Any) -> Any:
        if (connection_pool := self.connection_pool) is not None:
            return lending.borrow(self, connection_pool)
        return connect(self)

    @async_unsafe  # type: ignore[untyped-decorator]
    @functools.wraps(close)
    def close_or_give_back(self: Any) -> Any:
        if lending.give_back(self):
            return
        return close(self)

    wrapper_class.async_pool_class = AsyncConnectionPool
    wrapper_class.pool_class = ConnectionPool
    wrapper_class.connector_class = pool.DatabaseConnector
    wrapper_class.connection_pool = property(pools.for_wrapper)
    wrapper_class.close_pool = lending.close_pool
    wrapper_class.pin_reason = property(lending.get_pin_reason)
    wrapper_class.pinned = lending.pinned
    wrapper_class.__init__ = init_and_set_up
    wrapper_class.connect = connect_or_borrow
    wrapper_class.close = close_or_give_back
    wrapper_class._cursor = pooled_cursors.lends_cursor(wrapper_class._cursor)
    for name, decorator in [
        ("get_autocommit", lending.knows_autocommit),
        ("set_autocommit", lending.ends_transaction),
        ("run_and_clear_commit_hooks", lending.follows_transaction),
    ]:
        setattr(wrapper_class, name, decorator(getattr(wrapper_class, name)))


def _set_up_existing(wrapper_class: Any) -> None:
    """Do for wrappers of any thread what their __init__() didn't do yet."""
    from django.db.backends.base import lending

    for candidate in gc.get_objects():
        # Not isinstance(), which has lazy objects evaluated.
        if issubclass(type(candidate), wrapper_class):
            lending.set_up(candidate)


def _leave_nodb_cursor_unpooled(wrapper_class: Any) -> None:
    """Have _nodb_cursor() connect with "POOL": False."""
    nodb_cursor = wrapper_class._nodb_cursor

    @functools.wraps(nodb_cursor)
    def unpooled_nodb_cursor(self: Any) -> Any:
        # It takes its settings from the wrapper.
        unpooled = self.__class__({**self.settings_dict, "POOL": False}, self.alias)
        return nodb_cursor(unpooled)

    wrapper_class._nodb_cursor = unpooled_nodb_cursor


def _edit_asyncio(module: Any) -> None:
    """
    Have async_unsafe() ask for the running loop in a way that raises nothing.

    It takes effect for what is decorated from now on.
    """
    import os
    from asyncio import _get_running_loop

    from django.core.exceptions import SynchronousOnlyOperation

    async_unsafe = module.async_unsafe

    @functools.wraps(async_unsafe)
    def faster_async_unsafe(message: Any) -> Any:
        if not callable(message):
            return functools.partial(_decorate, message)
        return _decorate(
            "You cannot call this from an async context - use a thread or "
            "sync_to_async.",
            message,
        )

    def _decorate(message: str, func: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(func)
        def inner(*args: Any, **kwargs: Any) -> Any:
            if _get_running_loop() is not None:
                if not os.environ.get("DJANGO_ALLOW_ASYNC_UNSAFE"):
                    raise SynchronousOnlyOperation(message)
            return func(*args, **kwargs)

        return inner

    module.async_unsafe = faster_async_unsafe


def _edit_utils(module: Any) -> None:
    handler_class = module.ConnectionHandler
    configure_settings = handler_class.configure_settings

    @functools.wraps(configure_settings)
    def configure_settings_and_pool(self: Any, databases: Any) -> Any:
        databases = configure_settings(self, databases)
        for settings_dict in databases.values():
            settings_dict.setdefault("POOL", False)
        return databases

    handler_class.configure_settings = configure_settings_and_pool


def _edit_creation(module: Any) -> None:
    from django.db.pool import pools

    creation_class = module.BaseDatabaseCreation
    clone_test_db = creation_class.clone_test_db
    destroy_test_db = creation_class.destroy_test_db

    @functools.wraps(clone_test_db)
    def close_pools_and_clone(self: Any, suffix: str, *args: Any, **kwargs: Any) -> Any:
        pools.close_database(self.connection.settings_dict)
        return clone_test_db(self, suffix, *args, **kwargs)

    @functools.wraps(destroy_test_db)
    def close_pools_and_destroy(
        self: Any,
        old_database_name: str | None = None,
        verbosity: int = 1,
        keepdb: bool = False,
        suffix: str | None = None,
    ) -> Any:
        self.connection.close()
        pools.close_database(
            self.connection.settings_dict
            if suffix is None
            else self.get_test_db_clone_settings(suffix)
        )
        return destroy_test_db(self, old_database_name, verbosity, keepdb, suffix)

    creation_class.clone_test_db = close_pools_and_clone
    creation_class.destroy_test_db = close_pools_and_destroy


def _use_connector_of(backend: str) -> Callable[[Any], None]:
    """Return an edit that sets a backend's connector."""

    def edit(module: Any) -> None:
        pool = importlib.import_module("django.db.backends.%s.pool" % backend)
        module.DatabaseWrapper.connector_class = pool.DatabaseConnector

    return edit


def _be_unusable_without_connection(wrapper_class: Any) -> None:
    """Have is_usable() return False when there's no connection."""
    is_usable = wrapper_class.is_usable

    @functools.wraps(is_usable)
    def has_usable_connection(self: Any) -> Any:
        return self.connection is not None and is_usable(self)

    wrapper_class.is_usable = has_usable_connection


def _close_both_pools(module: Any) -> None:
    """Have close_pool() of a backend that pools on its own close ours too."""
    from django.db.backends.base.lending import close_pool

    wrapper_class = module.DatabaseWrapper
    close_own_pool = wrapper_class.close_pool

    @functools.wraps(close_own_pool)
    def close_pools(self: Any) -> Any:
        close_pool(self)
        return close_own_pool(self)

    wrapper_class.close_pool = close_pools


def _edit_postgresql(module: Any) -> None:
    _use_connector_of("postgresql")(module)
    _close_both_pools(module)
    wrapper_class = module.DatabaseWrapper
    _leave_nodb_cursor_unpooled(wrapper_class)
    ensure_timezone = wrapper_class.ensure_timezone

    @functools.wraps(ensure_timezone)
    def drain_and_ensure_timezone(self: Any) -> Any:
        # The calls below may close the pool of OPTIONS["pool"], which this
        # one isn't: its connections are replaced as they become idle.
        if (connection_pool := self.connection_pool) is not None:
            connection_pool.drain()
            if self.connection is None:
                return False
            return self._configure_timezone(self.connection)
        return ensure_timezone(self)

    wrapper_class.ensure_timezone = drain_and_ensure_timezone


def _edit_mysql(module: Any) -> None:
    _use_connector_of("mysql")(module)
    _be_unusable_without_connection(module.DatabaseWrapper)


def _edit_oracle(module: Any) -> None:
    _use_connector_of("oracle")(module)
    _be_unusable_without_connection(module.DatabaseWrapper)
    _close_both_pools(module)


def _edit_postgres_signals(module: Any) -> None:
    def once_per_connection(register: Any) -> Any:
        """
        Have a connection_created receiver skip connections of a pool that it
        has seen, unless an extension brought other types since.
        """

        @functools.wraps(register)
        def register_once(connection: Any, **kwargs: Any) -> Any:
            lease = connection._pool_lease
            if (
                lease is None
                or lease.entry is None
                or connection.vendor != "postgresql"
                or "signal" not in kwargs
            ):
                return register(connection, **kwargs)
            notes = lease.entry.session.notes
            oids = (
                module.get_hstore_oids(connection.alias),
                module.get_citext_oids(connection.alias),
            )
            if notes.get("type_oids") != oids:
                register(connection, **kwargs)
                notes["type_oids"] = oids

        return register_once

    module.once_per_connection = once_per_connection
    module.register_type_handlers = once_per_connection(module.register_type_handlers)


def _edit_checks(module: Any) -> None:
    importlib.import_module("django.core.checks.pool")


EDITS: dict[str, Callable[[Any], None]] = {
    "django.contrib.postgres.signals": _edit_postgres_signals,
    "django.core.checks": _edit_checks,
    "django.db.backends.base.base": _edit_base,
    "django.db.backends.base.creation": _edit_creation,
    "django.db.backends.mysql.base": _edit_mysql,
    "django.db.backends.oracle.base": _edit_oracle,
    "django.db.backends.postgresql.base": _edit_postgresql,
    "django.db.backends.sqlite3.base": _use_connector_of("sqlite3"),
    "django.db.utils": _edit_utils,
    "django.utils.asyncio": _edit_asyncio,
}
