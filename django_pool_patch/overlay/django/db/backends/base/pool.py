"""A connector that works with any backend, and that backends refine."""

import functools
import weakref

from django.db.backends.base.asynchronous import AsyncDatabaseWrapper
from django.db.backends.base.lending import announce
from django.db.backends.base.loops import ThreadedConnection
from django.db.backends.base.statements import SESSION_STATEMENTS
from django.db.backends.signals import connection_created
from django.db.pool.base import BaseConnector
from django.db.pool.registry import identity

# Attributes of a wrapper that are about itself, or refer to it. They are never
# handed to another wrapper.
OWN_ATTRIBUTES = frozenset(
    [
        "autocommit",
        "connection",
        "ensure_connection",
        "errors_occurred",
        "run_commit_hooks_on_set_autocommit_on",
        "run_on_commit",
        "settings_dict",
        "timezone",
        "timezone_name",
        "wrap_database_errors",
        "_pool_busy",
        "_thread_sharing_count",
    ]
)


class Session:
    """What the connector remembers of a pooled connection's session."""

    __slots__ = (
        "wrapper",
        "is_plain",
        "initial_state",
        "autocommit",
        "is_suspect",
        "is_touched",
        "is_announced",
        "is_announced_to_tasks",
        "notes",
        "in_loop",
        "loop",
    )

    def __init__(self, wrapper, is_plain):
        # The wrapper that initialized the connection: the pool's own, unknown
        # to any request.
        self.wrapper = wrapper
        # Tells statements that can't touch the session.
        self.is_plain = is_plain
        # What read_state() returned after that.
        self.initial_state = None
        # What the last wrapper believed.
        self.autocommit = wrapper.autocommit
        # Whether an error cast doubt on the connection, or it was touched.
        self.is_suspect = False
        # Whether somebody may have changed what a transaction's end doesn't
        # undo. Whoever sets it sets is_suspect too.
        self.is_touched = False
        # Whether connection_created was sent for it: in transaction mode, and
        # before it was lent to a task.
        self.is_announced = False
        self.is_announced_to_tasks = False
        # Room for receivers of connection_created that prepare the driver's
        # connection, and need to do so only once.
        self.notes = {}
        # What the tasks of an event loop used the connection by, and a weak
        # reference to that loop. The next of its tasks uses the same.
        self.in_loop = None
        self.loop = None


def do_nothing():
    pass


class DatabaseConnector(BaseConnector):
    """
    A connector that does everything through a DatabaseWrapper of its own.

    Backends subclass it for what their driver tells without a round trip.
    """

    # Nothing is known of the driver that would tell that a connection is dead,
    # so it's asked for a sign of life sooner than others.
    ping_after = 1.0

    # Cached properties of a wrapper that are evaluated once for each physical
    # connection, so that no wrapper has to ask the server.
    facts = ()

    # What is known of the database's statements.
    session_statements = SESSION_STATEMENTS

    # Whether a cursor that has returned all rows can do without a connection,
    # and the attributes that are copied when it needs one again.
    can_detach_cursors = False
    cursor_attributes = ("arraysize",)

    # Whether reset_session() can do it.
    can_reset_session = False

    # Whether is_clean() knows of any transaction, also of one that was begun
    # by hand.
    knows_transactions = False

    def __init__(self, wrapper):
        self.wrapper_class = type(wrapper)
        self.alias = wrapper.alias
        # The dict itself, so that a changed password is noticed, and a copy
        # for when the dict is about another database, as in tests.
        self._settings_dict = wrapper.settings_dict
        self._first_settings_dict = {**wrapper.settings_dict}
        self._identity = identity(self._first_settings_dict)
        self.autocommit = wrapper.settings_dict["AUTOCOMMIT"]
        if wrapper.settings_dict["CONN_HEALTH_CHECKS"]:
            self.ping_after = 0.5
        # Wrappers between open() and configure(), by their connection's id.
        self._opening = {}

    @property
    def settings_dict(self):
        """The settings to connect by."""
        if identity(self._settings_dict) == self._identity:
            return self._settings_dict
        return self._first_settings_dict

    @classmethod
    def can_pool(cls, wrapper):
        """Return whether a wrapper's database can be pooled."""
        return True

    # What a pool asks for.

    def open(self):
        wrapper = self.wrapper_class({**self.settings_dict, "POOL": False}, self.alias)
        # The threads that happen to check or clean the connection use it.
        wrapper.inc_thread_sharing()
        before = dict(wrapper.__dict__)
        connection = wrapper.get_new_connection(wrapper.get_connection_params())
        wrapper.connection = connection
        # It's connected, whatever anybody makes of the method of the class,
        # say to keep tests from connecting.
        wrapper.ensure_connection = do_nothing
        self._opening[id(connection)] = wrapper, before
        return connection

    def get_opening_wrapper(self, connection):
        """Return the pool's wrapper of a connection that open() returned."""
        return self._opening[id(connection)][0]

    def configure(self, entry):
        wrapper, before = self._opening.pop(id(entry.connection))
        entry.session = Session(wrapper, self.session_statements.is_plain)
        self.initialize(entry)
        for name in self.facts:
            getattr(wrapper, name)
        entry.facts = {
            name: value
            for name, value in wrapper.__dict__.items()
            if name not in OWN_ATTRIBUTES
            and (name not in before or before[name] is not value)
        }

    def initialize(self, entry):
        """Bring the session into its initial state, and remember that."""
        session = entry.session
        session.wrapper.set_autocommit(self.autocommit)
        session.wrapper.init_connection_state()
        session.initial_state = self.read_state(entry.connection)
        session.autocommit = self.autocommit
        session.is_suspect = session.is_touched = False
        session.is_announced = session.is_announced_to_tasks = False
        session.notes.clear()

    def close(self, connection):
        self._opening.pop(id(connection), None)
        connection.close()

    def check(self, entry):
        wrapper = entry.session.wrapper
        if not wrapper.is_usable():
            return False
        if not self.autocommit:
            # Asking began a transaction.
            entry.connection.rollback()
        return True

    def is_clean(self, entry):
        session = entry.session
        # Without autocommit there may be a transaction at any time.
        return self.autocommit and session.autocommit and not session.is_suspect

    def reset(self, entry, full=False):
        session = entry.session
        full = full or session.is_touched
        if full and not self.can_reset_session:
            return None
        # In a failed transaction not even a check would succeed.
        self.roll_back_if_needed(entry)
        self.restore_state(entry)
        if full:
            self.reset_session(entry)
        elif session.is_suspect:
            if not self.check(entry):
                return False
            session.is_suspect = False
        return True

    # What differs from driver to driver.

    def read_state(self, connection):
        """Return the state that restore_state() restores, for comparison."""
        return None

    def restore_state(self, entry):
        """Restore what a wrapper or its user changed through the driver."""
        entry.session.wrapper._set_autocommit(self.autocommit)
        entry.session.autocommit = self.autocommit

    def roll_back_if_needed(self, entry):
        """Roll back if there is, or may be, a transaction."""
        entry.connection.rollback()

    def reset_session(self, entry):
        """
        Undo everything that was done to the session, and initialize it again.

        It's called if can_reset_session; otherwise there will be a new
        connection.
        """
        raise NotImplementedError(
            "subclasses of DatabaseConnector may require a reset_session() method"
        )

    # Cursors.

    def is_buffered(self, cursor, is_named):
        """
        Return whether a driver's cursor, which may be a server-side one, needs
        no connection for returning rows.
        """
        return False

    def detach_cursor(self, cursor):
        """
        Keep a driver's cursor that has returned all rows from using its
        connection, which will be somebody else's, also when it's closed.
        """

    def abandon_cursor(self, cursor):
        """
        Close a driver's cursor as far as that can be done without using its
        connection, which is somebody else's.
        """

    def connection_limit(self, wrapper):
        """
        Return how many connections the server takes of this user, or None if
        it can't be told.
        """
        return None

    # Event loops.

    def enter_loop(self, entry, loop):
        session = entry.session
        in_loop = session.in_loop
        if in_loop is None or session.loop() is not loop:
            in_loop = session.in_loop = self.make_connection_in_loop(entry, loop)
            session.loop = weakref.ref(loop)
        entry.connection_in_loop = in_loop
        if connection_created.receivers and not session.is_announced_to_tasks:
            # Receivers are written for threads.
            return functools.partial(announce, self.alias, entry)

    def leave_loop(self, entry):
        in_loop, entry.connection_in_loop = entry.connection_in_loop, None
        return in_loop.leave()

    def make_connection_in_loop(self, entry, loop):
        """
        Return what the tasks of a running event loop use a connection by. It
        has begin(), end() and leave() besides what the driver's users expect.
        """
        return ThreadedConnection(self, entry)

    def make_task_connection(self, pool, entry, task):
        """
        Return what aconnection() gives a task, for an entry that was acquired
        from an AsyncConnectionPool.
        """
        return AsyncDatabaseWrapper(self.alias, pool, entry, task)

    def interrupt(self, connection):
        """
        Interrupt what a connection is executing in another thread. This may
        block, and be called several times.
        """
        raise NotImplementedError(
            "subclasses of DatabaseConnector may require an interrupt() method"
        )

    # Lessees.

    def get_thread_ident(self, entry):
        wrapper = self._get_lessee(entry)
        return None if wrapper is None else wrapper._thread_ident

    def reclaim(self, entry):
        wrapper = self._get_lessee(entry)
        if (
            wrapper is None
            or wrapper.allow_thread_sharing
            or wrapper._pool_thread is None
            or wrapper._pool_thread.is_alive()
        ):
            return False
        wrapper._pool_lease.entry = wrapper._pool_lease = None
        wrapper.connection = entry.lessee = None
        entry.session.is_suspect = True
        entry.session.autocommit = wrapper.autocommit
        return True

    def abandon(self, entry):
        wrapper = self._get_lessee(entry)
        if wrapper is not None:
            wrapper._pool_lease.entry = wrapper._pool_lease = None
            wrapper.connection = None
            if wrapper.in_atomic_block:
                wrapper.closed_in_transaction = True
                wrapper.needs_rollback = True
        super().abandon(entry)

    def after_fork_in_child(self):
        opening, self._opening = self._opening, {}
        for wrapper, _ in opening.values():
            self.abandon_connection(wrapper.connection)

    @staticmethod
    def _get_lessee(entry):
        """Return the wrapper that an entry is lent to, if there is one."""
        if entry.lessee is None or (wrapper := entry.lessee()) is None:
            return None
        lease = wrapper._pool_lease
        return wrapper if lease is not None and lease.entry is entry else None
