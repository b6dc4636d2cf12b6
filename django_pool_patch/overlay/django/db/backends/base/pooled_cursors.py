"""
Cursors of pooled connections: they know whether the connection is still
theirs, notice what touches the session, and, in transaction mode, tell when
they don't need the connection anymore.
"""

import functools

from django.db.backends.base.lending import (
    NO_LEASE,
    borrow_again,
    give_back_unless_needed,
    leave,
    note_call,
    note_statement,
    pin,
)
from django.db.backends.base.statements import UNKNOWN
from django.db.backends.utils import CursorDebugWrapper, CursorWrapper
from django.db.utils import InterfaceError

# Attributes of drivers' cursors that are of use without a connection.
UNCONNECTED = frozenset("""
    arraysize closed description format itersize lastrowid messages mogrify name
    pgresult query results row_factory rowcount rowfactory rownumber scroll
    statusmessage
    """.split())

# Methods of some drivers' cursors that execute their first argument.
EXECUTING = frozenset(["copy", "copy_expert", "executescript", "stream"])

# Methods of Django's cursors that don't use the connection.
NOT_CONNECTING = frozenset(["debug_sql"])


class PooledCursorMixin:
    """What a cursor does besides what Django's CursorWrapper does."""

    def _take(self, lease, is_named):
        """Become the cursor of a connection that was borrowed."""
        # As attributes of the class they would be slower.
        #
        # What the connection was borrowed by; NO_LEASE once the cursor is
        # closed.
        self._lease = lease
        # Whether the cursor exists on the server too.
        self._is_named = is_named
        # The statement that was executed, if there's nothing special about it.
        self._plain_sql = None
        # Whether all rows were read, and the connection isn't the cursor's
        # since.
        self._is_detached = False
        # Whether it was closed without its connection.
        self._is_abandoned = False

    def _execute(self, sql, params, *ignored_wrapper_args):
        self._prepare(sql)
        return super()._execute(sql, params)

    def _executemany(self, sql, param_list, *ignored_wrapper_args):
        self._prepare(sql)
        return super()._executemany(sql, param_list)

    def _prepare(self, sql):
        """Get ready for executing a statement."""
        entry = self._lease.entry
        if entry is None or self._is_detached:
            entry = self._rejoin().entry
        if entry is not None:
            if entry.session.is_plain(sql):
                self._plain_sql = sql
            else:
                self._plain_sql = None
                note_statement(self.db, self._lease, sql)

    def callproc(self, procname, params=None, kparams=None):
        if (lease := self._rejoin()) is not NO_LEASE:
            # There may be several sets of results.
            self._plain_sql = None
            note_call(self.db, lease, procname, params)
        return super().callproc(procname, params, kparams)

    # Written out, these are also faster than by CursorWrapper.__getattr__().

    def fetchone(self):
        if self._lease.entry is None:
            self._validate_lease()
        with self.db.wrap_database_errors:
            return self.cursor.fetchone()

    def fetchmany(self, *args, **kwargs):
        if self._lease.entry is None:
            self._validate_lease()
        with self.db.wrap_database_errors:
            return self.cursor.fetchmany(*args, **kwargs)

    def fetchall(self):
        if self._lease.entry is None:
            self._validate_lease()
        with self.db.wrap_database_errors:
            return self.cursor.fetchall()

    def __iter__(self):
        self._validate_lease()
        return super().__iter__()

    def close(self):
        lease, self._lease = self._lease, NO_LEASE
        if lease is NO_LEASE:
            if not self._is_abandoned:
                self.cursor.close()
            return
        if lease.entry is not None:
            if self._is_named:
                # If closing fails, it goes with the connection.
                lease.named_cursors -= 1
            return self.cursor.close()
        # The connection is somebody else's by now.
        self._is_abandoned = True
        lease.pool.connector.abandon_cursor(self.cursor)

    def __getattr__(self, attr):
        if attr not in UNCONNECTED and attr[0] != "_":
            self._rejoin()
            if attr in EXECUTING:
                return _noting(super().__getattr__(attr), self)
        return super().__getattr__(attr)

    def _rejoin(self):
        """
        Return what the connection to use is borrowed by, or NO_LEASE if the
        cursor is closed: drivers have errors for that.

        Raise InterfaceError, as drivers do after close(), if the connection
        went back without the cursor's consent.
        """
        if self._lease is not NO_LEASE:
            if not self._is_detached:
                self._validate_connection()
        elif self._is_abandoned:
            raise InterfaceError("The cursor is closed. Get a new one.")
        return self._lease

    def _validate_lease(self):
        """
        Raise InterfaceError if rows can't be had without a connection, and it
        isn't the cursor's anymore.
        """
        lease = self._lease
        if (
            lease.entry is None
            and lease is not NO_LEASE
            and not self._is_detached
            and not lease.pool.connector.is_buffered(self.cursor, self._is_named)
        ):
            self._validate_connection()

    def _validate_connection(self):
        if self._lease.entry is None:
            raise InterfaceError(
                "The connection of this cursor was closed, and may be in use by "
                "others. Get a new cursor."
            )


class StatementCursorMixin(PooledCursorMixin):
    """
    The cursor of a connection that goes back when no cursor needs it.

    A cursor doesn't need it once it's closed, or has returned all rows. It
    may get another connection when it's used again.
    """

    def fetchone(self):
        # As above, written out once more, for it's what most cursors do.
        if self._lease.entry is None:
            self._validate_lease()
        with self.db.wrap_database_errors:
            row = self.cursor.fetchone()
        if row is None:
            self._detach()
        return row

    def fetchmany(self, *args, **kwargs):
        rows = super().fetchmany(*args, **kwargs)
        if not rows or (args and len(rows) < args[0]):
            self._detach()
        return rows

    def fetchall(self):
        rows = super().fetchall()
        self._detach()
        return rows

    def __iter__(self):
        yield from super().__iter__()
        self._detach()

    def close(self):
        lease = self._lease
        if lease.entry is None or self._is_detached or self._is_named:
            return self._close_rarely()
        # What most cursors do.
        self._lease = NO_LEASE
        try:
            self.cursor.close()
        finally:
            lease.cursors.discard(id(self))
            give_back_unless_needed(self.db)

    def _close_rarely(self):
        lease = self._lease
        try:
            super().close()
        finally:
            if lease is not NO_LEASE and not self._is_detached:
                lease.cursors.discard(id(self))
                give_back_unless_needed(self.db)

    def __del__(self):
        lease = self._lease
        if lease is not NO_LEASE and not self._is_detached:
            lease.cursors.discard(id(self))
            leave(self.db, lease)

    def _detach(self):
        """
        Let go of the connection if there is nothing else to read from it, and
        if there's any use in that.

        After a change the next statement may ask for what it did, as by
        LAST_INSERT_ID().
        """
        lease = self._lease
        wrapper = self.db
        if (
            self._plain_sql is not None
            and self._plain_sql.lstrip(" \n(")[:6].lower() == "select"
            and not self._is_named
            and not self._is_detached
            and lease.entry is not None
            and wrapper.autocommit
            and lease.pin_reason is None
            and lease.pool.connector.can_detach_cursors
        ):
            lease.pool.connector.detach_cursor(self.cursor)
            self._is_detached = True
            lease.cursors.discard(id(self))
            give_back_unless_needed(wrapper)

    def _rejoin(self):
        if self._is_detached and self._lease is not NO_LEASE:
            self._attach()
        return super()._rejoin()

    def _attach(self):
        """Get a connection again, and a driver's cursor of it."""
        wrapper = self.db
        previous = self.cursor
        attributes = self._lease.pool.connector.cursor_attributes
        wrapper._pool_busy += 1
        try:
            wrapper.ensure_connection()
            with wrapper.wrap_database_errors:
                self.cursor = wrapper.create_cursor()
            for name in attributes:
                setattr(self.cursor, name, getattr(previous, name))
            self._is_detached = False
            lease = wrapper._pool_lease
            if lease is None or lease.entry is None:
                # It isn't the pool's connection anymore.
                self._lease = NO_LEASE
            else:
                self._lease = lease
                if lease.by_statement:
                    lease.cursors.add(id(self))
        finally:
            wrapper._pool_busy -= 1
            give_back_unless_needed(wrapper)


# Classes of pooled cursors by those that they extend.
_session_classes = {}
_statement_classes = {}


def lend_cursor(wrapper, lease, cursor, name):
    """Return one of Django's cursors as one of a pooled connection."""
    classes = _statement_classes if lease.by_statement else _session_classes
    cursor_class = type(cursor)
    pooled_class = classes.get(cursor_class) or _make_class(classes, cursor_class)
    if pooled_class is None:
        # It won't tell when it's closed.
        if lease.by_statement and lease.pin_reason is None:
            pin(wrapper, lease, UNKNOWN)
        return cursor
    if cursor_class is CursorWrapper or cursor_class is CursorDebugWrapper:
        # A new object's attributes are faster than those of one that was made
        # another class's.
        cursor = pooled_class(cursor.cursor, cursor.db)
    else:
        cursor.__class__ = pooled_class
    cursor._take(lease, name is not None)
    if lease.by_statement:
        lease.cursors.add(id(cursor))
    if name is not None:
        lease.named_cursors += 1
    return cursor


def _make_class(classes, cursor_class):
    if not issubclass(cursor_class, CursorWrapper):
        return None
    mixin = StatementCursorMixin if classes is _statement_classes else PooledCursorMixin
    methods = {
        name: _rejoining(getattr(cursor_class, name), name in EXECUTING)
        for name in dir(cursor_class)
        if name[0] != "_"
        and not hasattr(CursorWrapper, name)
        and name not in NOT_CONNECTING
    }
    pooled_class = type(
        "Pooled" + cursor_class.__name__, (mixin, cursor_class), methods
    )
    return classes.setdefault(cursor_class, pooled_class)


def _rejoining(method, executes):
    """Return a method that sees to a connection first."""

    @functools.wraps(method)
    def rejoin_and_call(self, *args, **kwargs):
        self._rejoin()
        bound_method = functools.partial(method, self)
        if executes:
            bound_method = _noting(bound_method, self)
        return bound_method(*args, **kwargs)

    return rejoin_and_call


def _noting(execute, cursor):
    """Return a function that notes its first argument, a statement."""

    def note_and_execute(*args, **kwargs):
        if (lease := cursor._rejoin()) is not NO_LEASE:
            cursor._plain_sql = None
            if args:
                note_statement(cursor.db, lease, args[0])
            else:
                pin(cursor.db, lease, UNKNOWN)
        return execute(*args, **kwargs)

    return note_and_execute


def lends_cursor(method):
    """Decorate what makes a cursor, connecting if need be: _cursor()."""

    @functools.wraps(method)
    def make_cursor(self, name=None):
        self._pool_busy += 1
        try:
            if (
                (lease := self._pool_lease) is not None
                and lease.entry is None
                and self.connection is None
                and not self._thread_sharing_count
            ):
                borrow_again(self, lease)
            cursor = method(self, name)
            lease = self._pool_lease
            if lease is not None and lease.entry is not None:
                cursor = lend_cursor(self, lease, cursor, name)
        except BaseException:
            self._pool_busy -= 1
            give_back_unless_needed(self)
            raise
        self._pool_busy -= 1
        return cursor

    return make_cursor
