"""Checks of POOL in settings.DATABASES."""

import os

from django.db import DatabaseError, connections
from django.db.pool.options import PoolOptions
from django.db.pool.registry import find_pool_class, setting_problems

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
    return issues


def _import_problems(alias):
    from django.core.exceptions import ImproperlyConfigured

    try:
        find_pool_class(connections[alias])
        connections[alias].connection_pool
    except ImproperlyConfigured as e:
        return [str(e)]
    return []


@register(Tags.database)
def check_pool_size(databases=None, **kwargs):
    """Compare what pools may open with what their servers take."""
    issues = []
    for alias in databases or []:
        connection = connections[alias]
        if setting_problems(connection.settings_dict, alias):
            # Reported by check_pool_settings().
            continue
        pool = connection.connection_pool
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
    elif max_size * processes > limit:
        what = "%d processes may open %d connections each (max_size=%d), %d in all" % (
            processes,
            max_size,
            max_size,
            max_size * processes,
        )
    else:
        return
    yield Warning(
        "The server of '%s' takes %d connections, but %s." % (alias, limit, what),
        hint=(
            "Lower max_size or WEB_CONCURRENCY, or raise the server's limit. Other "
            "clients need connections too."
        ),
        obj="DATABASES[%r]" % alias,
        id="pool.W001",
    )
