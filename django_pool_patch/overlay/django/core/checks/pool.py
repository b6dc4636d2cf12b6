"""Checks of POOL in settings.DATABASES."""

import os

from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, connections
from django.db.pool.options import PoolOptions
from django.db.pool.registry import find_pool_class, setting_problems
from django.utils.module_loading import import_string

from . import Error, Tags, Warning, register


@register()
def check_pool_settings(**kwargs):
    """Find what is wrong with POOL, connecting to nothing."""
    issues = []
    for alias, settings_dict in connections.settings.items():
        if not PoolOptions.enabled(settings_dict.get("POOL")):
            continue
        problems = setting_problems(settings_dict, alias)
        if not problems:
            problems = _import_problems(alias)
        issues.extend(
            Error(problem, obj="DATABASES[%r]" % alias, id="pool.E001")
            for problem in problems
        )
        if not problems:
            issues.extend(_mode_issues(alias))
    return issues


def _mode_issues(alias):
    pool = connections[alias].connection_pool
    if pool is None or pool.options.mode != "transaction":
        return
    where = "DATABASES[%r]" % alias
    if not connections.settings[alias]["AUTOCOMMIT"]:
        yield Warning(
            "DATABASES['%s']['POOL']: mode 'transaction' has no effect, for "
            "without AUTOCOMMIT a transaction lasts until the connection is "
            "closed." % alias,
            hint="Remove 'mode', or set AUTOCOMMIT to True.",
            obj=where,
            id="pool.W002",
        )
    if not pool.supports_reuse or (
        pool.options.reset == "always"
        and not getattr(pool.connector, "can_reset_session", True)
    ):
        yield Warning(
            "DATABASES['%s']['POOL']: each statement needs a new connection in "
            "mode 'transaction' with %s."
            % (
                alias,
                (
                    "this backend and reset 'always'"
                    if pool.supports_reuse
                    else type(pool).__name__
                ),
            ),
            hint="Remove 'mode', or what makes connections unfit for reuse.",
            obj=where,
            id="pool.W003",
        )


def _import_problems(alias):
    """Return a list of sentences on what POOL names and can't be used."""
    connection = connections[alias]
    problems = []
    try:
        find_pool_class(connection)
    except ImproperlyConfigured as e:
        problems.append(str(e))
    setting = connection.settings_dict["POOL"]
    for name in ("check", "reset"):
        path = None if setting is True else setting.get(name)
        if not isinstance(path, str) or "." not in path:
            continue
        try:
            if callable(import_string(path)):
                continue
        except ImportError as e:
            problem = (
                "can't be imported: %s. Install its package, or correct the path." % e
            )
        else:
            problem = (
                "isn't callable. Name a function that takes the driver's connection."
            )
        problems.append(
            "DATABASES['%s']['POOL']: %s %r %s" % (alias, name, path, problem)
        )
    if not problems:
        try:
            # Makes the pool, which opens nothing.
            connection.connection_pool
        except ImproperlyConfigured as e:
            problems.append(str(e))
    return problems


@register(Tags.database)
def check_pool_size(databases=None, **kwargs):
    """Compare what pools may open with what their servers take."""
    issues = []
    for alias in databases or []:
        connection = connections[alias]
        try:
            pool = connection.connection_pool
        except ImproperlyConfigured:
            # Reported by check_pool_settings().
            continue
        if pool is None:
            continue
        try:
            limit = pool.connector.connection_limit(connection)
        except DatabaseError:
            # Not everybody may ask.
            limit = None
        if limit is not None:
            issues.extend(_size_issues(alias, pool.options.max_size, limit))
    return issues


def _size_issues(alias, max_size, limit):
    try:
        processes = max(1, int(os.environ.get("WEB_CONCURRENCY", 1)))
    except ValueError:
        processes = 1
    if max_size is None:
        what = "POOL sets no limit (max_size=None)"
    elif max_size * processes <= limit:
        return
    elif processes == 1:
        what = "1 process may open %d connections (max_size=%d)" % (max_size, max_size)
    else:
        what = "%d processes may open %d connections each (max_size=%d), %d in all" % (
            processes,
            max_size,
            max_size,
            max_size * processes,
        )
    yield Warning(
        "The server of '%s' takes %d connections, but %s." % (alias, limit, what),
        hint=(
            "Lower max_size or WEB_CONCURRENCY, or raise the server's limit. Other "
            "clients need connections too."
        ),
        obj="DATABASES[%r]" % alias,
        id="pool.W001",
    )
