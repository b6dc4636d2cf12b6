"""The pools and connections of the running event loop and task."""

import asyncio
from asyncio import _get_running_loop
from contextvars import ContextVar

from .exceptions import PoolError
from .registry import pools

# The connections of the current context by alias: a dict that is never
# changed, for contexts that are copied share it.
_connections = ContextVar("django_db_connections", default={})


class AsyncPools:
    """
    The pools of the running event loop, by alias.

    They lend the connections of `pools` to tasks.
    """

    def __getitem__(self, alias):
        """
        Return the AsyncConnectionPool of `alias` for the running loop, opening
        nothing.

        Raise KeyError naming the remedy if the database has no pool, and
        PoolError if there's no running loop, or the pool can't serve tasks.
        """
        loop = _get_running_loop()
        if loop is None:
            raise PoolError(
                "apools['%s'] was used without a running event loop. Use "
                "django.db.pool.pools in threads." % alias
            )
        return pools.for_loop(alias, loop)


class aconnection:
    """
    `async with aconnection("default") as connection` gives the running task
    its connection to a database, an AsyncDatabaseWrapper, for the length of
    the block.

    Within the block, the same task gets the same connection again. Another
    task gets one of its own, unless the block's task is in a transaction: a
    task that it started would be outside of that without knowing it, so that
    raises PoolError.

    Raise KeyError if the database has no pool, and what the pool raises when
    there's no connection to be had.
    """

    def __init__(self, alias="default"):
        self.alias = alias

    async def __aenter__(self):
        alias = self.alias
        task = asyncio.current_task()
        found = _connections.get().get(alias)
        if found is not None and found.connection is not None:
            if found.task is task:
                found.depth += 1
                self._connection = found
                return found
            if found.in_atomic_block:
                raise PoolError(
                    "The task that started this one is in a transaction on '%s', "
                    "which this one wouldn't be part of. Pass it the connection, "
                    "start it outside of atomic(), or start it in an empty context."
                    % alias
                )
        self._outer = found
        pool = apools[alias]
        try:
            entry = await pool.acquire()
        except Exception:
            # Connecting raises the driver's exceptions.
            from django.db import connections

            with connections[alias].wrap_database_errors:
                raise
        connection = pool.connector.make_task_connection(pool, entry, task)
        self._connection = connection
        _connections.set({**_connections.get(), alias: connection})
        return connection

    async def __aexit__(self, exc_type, exc_value, traceback):
        connection = self._connection
        connection.depth -= 1
        if not connection.depth:
            connections = _connections.get()
            # Not by a token: a generator may end in another context.
            if connections.get(self.alias) is connection:
                _connections.set({**connections, self.alias: self._outer})
            if exc_type is GeneratorExit:
                # The task is being collected: nothing may be awaited.
                connection.give_back_later()
            else:
                await connection.give_back()


apools = AsyncPools()
