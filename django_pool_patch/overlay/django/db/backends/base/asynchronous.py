"""
Django's connection for one task: what a DatabaseWrapper is for a thread, on
every backend, but for the ORM.
"""

import functools
import logging
import time
from collections import deque
from contextlib import contextmanager
from inspect import isawaitable

from django.conf import settings
from django.db.transaction import TransactionManagementError
from django.db.utils import Error, InterfaceError

logger = logging.getLogger("django.db.backends.base")
query_logger = logging.getLogger("django.db.backends")


class AsyncDatabaseWrapper:
    """
    A connection borrowed from a pool for the length of an
    `async with aconnection()` block.

    Its methods are coroutines and belong to the block's task. Other tasks that
    were given it may use it, one statement at a time.
    """

    queries_limit = 9000

    # One is made for each block, and most of it stays as it is.
    force_debug_cursor = False
    execute_wrappers = ()
    queries_log = ()
    # Of transactions, as in DatabaseWrapper.
    in_atomic_block = False
    atomic_blocks = ()
    savepoint_ids = ()
    savepoint_state = 0
    needs_rollback = False
    run_on_commit = ()
    # Whether nobody knows if a transaction has ended.
    is_broken = False

    def __init__(self, alias, pool, entry, task):
        self.alias = alias
        self.pool = pool
        self.entry = entry
        # The driver's connection, or what stands for it; None after the block.
        self.connection = entry.connection_in_loop
        # The task that it belongs to, and how many blocks of it are open.
        self.task = task
        self.depth = 1
        # The one for threads which initialized the connection.
        self._wrapper = entry.session.wrapper
        self.wrap_database_errors = self._wrapper.wrap_database_errors

    def __repr__(self):
        return "<%s vendor=%r alias=%r>" % (
            type(self).__name__,
            self.vendor,
            self.alias,
        )

    @property
    def vendor(self):
        return self._wrapper.vendor

    @property
    def settings_dict(self):
        return self._wrapper.settings_dict

    @property
    def features(self):
        return self._wrapper.features

    @property
    def ops(self):
        return self._wrapper.ops

    @property
    def Database(self):
        return self._wrapper.Database

    # Statements.

    def cursor(self):
        """
        Return a cursor, to be used by `async with`. Parameters are written %s.

        Raise InterfaceError if the connection was given back.
        """
        self.validate_block()
        with self.wrap_database_errors:
            cursor = self.connection.cursor()
        return AsyncCursorWrapper(cursor, self)

    def validate_block(self):
        """Raise InterfaceError if the connection may be another's by now."""
        if self.connection is None:
            raise InterfaceError(
                "The connection to '%s' was given back at the end of its block. "
                "Use it within `async with aconnection()`." % self.alias
            )
        if self.is_broken:
            raise InterfaceError(
                "A transaction on '%s' couldn't be rolled back, so the connection "
                "can't be used anymore. End the block." % self.alias
            )

    @contextmanager
    def execute_wrapper(self, wrapper):
        """
        Have a function called around the execution of statements.

        It gets what one for threads gets: execute, sql, params, many and
        context. What it returns is awaited, so it may be a coroutine function,
        or return what execute() returns.
        """
        self.execute_wrappers = [*self.execute_wrappers, wrapper]
        try:
            yield
        finally:
            self.execute_wrappers = self.execute_wrappers[:-1]

    @property
    def queries_logged(self):
        return self.force_debug_cursor or settings.DEBUG

    @property
    def queries(self):
        return list(self.queries_log)

    # Transactions.

    def atomic(self, savepoint=True, durable=False):
        """
        Return a context manager for `async with`, and a decorator of coroutine
        functions, that does what django.db.transaction.atomic() does.
        """
        return AsyncAtomic(self, savepoint, durable)

    def validate_no_broken_transaction(self):
        if self.needs_rollback:
            raise TransactionManagementError(
                "An error occurred in the current transaction. You can't "
                "execute queries until the end of the 'atomic' block."
            )

    def validate_in_atomic_block(self):
        if not self.in_atomic_block:
            raise TransactionManagementError(
                "This is forbidden outside of an 'atomic' block."
            )

    def get_rollback(self):
        """Return whether the innermost block is going to be rolled back."""
        self.validate_in_atomic_block()
        return self.needs_rollback

    def set_rollback(self, rollback):
        """Say whether the innermost block is to be rolled back."""
        self.validate_in_atomic_block()
        self.needs_rollback = rollback

    async def on_commit(self, func, robust=False):
        """
        Have a function called after the transaction was committed, at once if
        there is none. What it returns is awaited if it can be.

        With `robust`, what it raises is logged and doesn't keep others from
        being called.
        """
        if not callable(func):
            raise TypeError("on_commit()'s callback must be a callable.")
        if self.in_atomic_block:
            hook = set(self.savepoint_ids), func, robust
            self.run_on_commit = [*self.run_on_commit, hook]
        else:
            await self._run_commit_hook(func, robust)

    async def _run_commit_hook(self, func, robust):
        try:
            result = func()
            if isawaitable(result):
                await result
        except Exception:
            if not robust:
                raise
            logger.exception(
                "Error calling %s in on_commit().", getattr(func, "__qualname__", func)
            )

    async def _run_and_clear_commit_hooks(self):
        hooks, self.run_on_commit = self.run_on_commit, ()
        for _, func, robust in hooks:
            await self._run_commit_hook(func, robust)

    async def savepoint(self):
        """
        Create a savepoint. Return its identifier, or None where there are no
        savepoints.
        """
        if not self.features.uses_savepoints or not self.in_atomic_block:
            return None
        self.savepoint_state += 1
        sid = "s%x_x%d" % (id(self.task), self.savepoint_state)
        await self._execute(self.ops.savepoint_create_sql(sid))
        return sid

    async def savepoint_commit(self, sid):
        """Release a savepoint."""
        if self.features.uses_savepoints and self.in_atomic_block:
            await self._execute(self.ops.savepoint_commit_sql(sid))

    async def savepoint_rollback(self, sid):
        """Roll back to a savepoint."""
        if not self.features.uses_savepoints or not self.in_atomic_block:
            return
        await self._execute(self.ops.savepoint_rollback_sql(sid))
        self.run_on_commit = [
            (sids, func, robust)
            for sids, func, robust in self.run_on_commit
            if sid not in sids
        ]

    async def _execute(self, sql):
        if sql:
            async with self.cursor() as cursor:
                await cursor.execute(sql)

    async def _begin(self):
        self.validate_block()
        with self._debugging("BEGIN"), self.wrap_database_errors:
            await self.connection.begin()

    async def _end(self, commit):
        self.validate_block()
        with self._debugging("COMMIT" if commit else "ROLLBACK"):
            with self.wrap_database_errors:
                await self.connection.end(commit)

    @contextmanager
    def _debugging(self, sql):
        """Log what isn't executed by a cursor."""
        if not self.queries_logged:
            yield
            return
        start = time.monotonic()
        try:
            yield
        finally:
            self.log_query(sql, None, time.monotonic() - start)

    def log_query(self, sql, params, seconds, many=None):
        """Log a statement, and keep it for `queries`. many counts params."""
        shown = sql if many is None else "%s times: %s" % (many, sql)
        if not self.queries_log:
            self.queries_log = deque(maxlen=self.queries_limit)
        self.queries_log.append({"sql": shown, "time": "%.3f" % seconds})
        query_logger.debug(
            "(%.3f) %s; args=%s; alias=%s",
            seconds,
            sql,
            params,
            self.alias,
            extra={
                "duration": seconds,
                "sql": sql,
                "params": params,
                "alias": self.alias,
            },
        )

    # The end of the block.

    async def give_back(self):
        """Give the connection back to the pool."""
        entry, self.entry, self.connection = self.entry, None, None
        wrapper = self._wrapper
        if wrapper.errors_occurred:
            wrapper.errors_occurred = False
            entry.session.is_suspect = True
        if self.in_atomic_block or self.is_broken:
            # Left without the end of atomic(), and perhaps not knowing it.
            entry.session.is_suspect = True
        await self.pool.release(entry)

    def give_back_later(self):
        """Do what give_back() does, in a finalizer."""
        entry, self.entry, self.connection = self.entry, None, None
        self.pool.release_later(entry)


class AsyncCursorWrapper:
    """A cursor of the driver's, with Django's errors, wrappers and logging."""

    def __init__(self, cursor, db):
        self.cursor = cursor
        self.db = db

    def __getattr__(self, attr):
        return getattr(self.cursor, attr)

    async def __aenter__(self):
        return self

    async def __aexit__(self, exc_type, exc_value, traceback):
        if exc_type is GeneratorExit:
            # The task may be collected: nothing may be awaited.
            return
        # As with cursors for threads, errors in cleaning up tell nothing.
        try:
            await self.cursor.close()
        except self.db.Database.Error:
            pass

    async def __aiter__(self):
        with self.db.wrap_database_errors:
            async for row in self.cursor:
                yield row

    async def execute(self, sql, params=None):
        """
        Execute a statement.

        Raise an exception of django.db.utils for the driver's, and
        TransactionManagementError in a transaction that has to be rolled back.
        """
        db = self.db
        if db.execute_wrappers or db.force_debug_cursor or settings.DEBUG:
            return await self._execute_with_wrappers(sql, params, False, self._execute)
        # _execute(), written out: it's what most statements come to.
        if db.needs_rollback or db.is_broken or db.connection is None:
            self._validate()
        with db.wrap_database_errors:
            if params is None:
                return await self.cursor.execute(sql)
            return await self.cursor.execute(sql, params)

    async def executemany(self, sql, param_list):
        """Execute a statement with each of the parameters."""
        return await self._execute_with_wrappers(
            sql, param_list, True, self._executemany
        )

    async def callproc(self, procname, params=None):
        """Call a procedure."""
        self._validate()
        with self.db.wrap_database_errors:
            args = (procname,) if params is None else (procname, params)
            return await self.cursor.callproc(*args)

    async def fetchone(self):
        with self.db.wrap_database_errors:
            return await self.cursor.fetchone()

    async def fetchmany(self, *args):
        with self.db.wrap_database_errors:
            return await self.cursor.fetchmany(*args)

    async def fetchall(self):
        with self.db.wrap_database_errors:
            return await self.cursor.fetchall()

    async def close(self):
        await self.cursor.close()

    async def _execute_with_wrappers(self, sql, params, many, executor):
        db = self.db
        if db.execute_wrappers:
            context = {"connection": db, "cursor": self}
            for wrapper in reversed(db.execute_wrappers):
                executor = functools.partial(wrapper, executor)
        else:
            context = None
        if not db.queries_logged:
            return await executor(sql, params, many, context)
        start = time.monotonic()
        try:
            return await executor(sql, params, many, context)
        finally:
            seconds = time.monotonic() - start
            count = None
            if many:
                try:
                    count = len(params)
                except TypeError:
                    # params could be an iterator.
                    count = "?"
            else:
                sql = db.ops.last_executed_query(self.cursor, sql, params)
            db.log_query(sql, params, seconds, count)

    def _validate(self):
        self.db.validate_block()
        self.db.validate_no_broken_transaction()

    async def _execute(self, sql, params, *ignored_wrapper_args):
        self._validate()
        with self.db.wrap_database_errors:
            if params is None:
                return await self.cursor.execute(sql)
            return await self.cursor.execute(sql, params)

    async def _executemany(self, sql, param_list, *ignored_wrapper_args):
        self._validate()
        with self.db.wrap_database_errors:
            return await self.cursor.executemany(sql, param_list)


class AsyncAtomic:
    """What django.db.transaction.Atomic is for threads."""

    def __init__(self, connection, savepoint, durable):
        self.connection = connection
        self.savepoint = savepoint
        self.durable = durable

    def __call__(self, func):
        @functools.wraps(func)
        async def inner(*args, **kwargs):
            async with self:
                return await func(*args, **kwargs)

        return inner

    async def __aenter__(self):
        connection = self.connection
        if self.durable and connection.atomic_blocks:
            raise RuntimeError(
                "A durable atomic block cannot be nested within another "
                "atomic block."
            )
        if not connection.in_atomic_block:
            connection.needs_rollback = False
            connection.validate_block()
            try:
                await connection._begin()
            except BaseException:
                # Perhaps it has begun all the same.
                await self._try_to_roll_back()
                raise
            connection.in_atomic_block = True
        elif self.savepoint and not connection.needs_rollback:
            sid = await connection.savepoint()
            connection.savepoint_ids = [*connection.savepoint_ids, sid]
        else:
            connection.savepoint_ids = [*connection.savepoint_ids, None]
        connection.atomic_blocks = [*connection.atomic_blocks, self]

    async def __aexit__(self, exc_type, exc_value, traceback):
        connection = self.connection
        if exc_type is GeneratorExit:
            # The task may be collected: nothing may be awaited. The pool rolls
            # back, and nobody uses the connection before.
            connection.is_broken = True
            return
        connection.atomic_blocks = connection.atomic_blocks[:-1]
        if connection.savepoint_ids:
            *connection.savepoint_ids, sid = connection.savepoint_ids
            await self._end_inner_block(sid, exc_type)
        else:
            await self._end_outermost_block(exc_type)

    async def _end_inner_block(self, sid, exc_type):
        connection = self.connection
        if exc_type is None and not connection.needs_rollback:
            if sid is None:
                return
            try:
                await connection.savepoint_commit(sid)
            except BaseException:
                await self._roll_back_to(sid)
                raise
            return
        # It's set again if there is no savepoint to roll back to.
        connection.needs_rollback = False
        if sid is None:
            connection.needs_rollback = True
        else:
            await self._roll_back_to(sid)

    async def _roll_back_to(self, sid):
        connection = self.connection
        try:
            await connection.savepoint_rollback(sid)
            # It won't be used again.
            await connection.savepoint_commit(sid)
        except Error:
            # Leave it to an outer block, and don't hide the original error.
            connection.needs_rollback = True
        except BaseException:
            # Somebody may catch the cancellation, and go on.
            connection.needs_rollback = True
            raise

    async def _end_outermost_block(self, exc_type):
        connection = self.connection
        connection.in_atomic_block = False
        commits = exc_type is None and not connection.needs_rollback
        connection.needs_rollback = False
        if commits:
            try:
                await connection._end(commit=True)
            except BaseException:
                connection.run_on_commit = ()
                await self._try_to_roll_back()
                raise
            await connection._run_and_clear_commit_hooks()
        else:
            connection.run_on_commit = ()
            await self._try_to_roll_back()

    async def _try_to_roll_back(self):
        connection = self.connection
        try:
            await connection._end(commit=False)
        except Error:
            # The pool finds out whether there is anything left of it.
            connection.is_broken = True
        except BaseException:
            connection.is_broken = True
            raise
