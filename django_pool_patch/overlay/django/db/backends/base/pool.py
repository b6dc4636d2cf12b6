"""
What joins a DatabaseWrapper and a pool: lending and taking back, and a
connector that works with any backend.
"""

import weakref
from _thread import get_ident
from threading import current_thread

from django.db.backends.signals import connection_created
from django.db.pool.base import BaseConnector
from django.db.pool.exceptions import PoolClosed
from django.db.pool.options import PoolOptions
from django.db.pool.registry import identity, pools

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
        "_thread_sharing_count",
    ]
)


# The wrapper's part.


def get_pool(wrapper):
    """Return the pool of a wrapper's database, or None if it has none."""
    if not PoolOptions.enabled(wrapper.settings_dict.get("POOL")):
        return None
    return pools.for_wrapper(wrapper)


def borrow(wrapper, pool):
    """
    Connect a wrapper by means of a pool: BaseDatabaseWrapper.connect() with
    one that has been initialized already.
    """
    wrapper.check_settings()
    if wrapper._pool_lease is not None:
        _forsake(wrapper)
    # In case the previous connection was closed while in an atomic block.
    wrapper.in_atomic_block = False
    wrapper.savepoint_ids = []
    wrapper.atomic_blocks = []
    wrapper.needs_rollback = False
    wrapper.closed_in_transaction = False
    wrapper.errors_occurred = False
    # The pool looks after age and health. At the end of the request the
    # connection is due to go back.
    wrapper.close_at = 0.0
    wrapper.health_check_enabled = False
    wrapper.health_check_done = True
    try:
        entry = pool.acquire()
    except PoolClosed:
        # Somebody closed it, say because settings changed. There may be
        # another one by now.
        closed_pool, pool = pool, get_pool(wrapper)
        if pool is closed_pool or pool is None:
            raise
        entry = pool.acquire()
    # From here on the lease is what keeps the entry alive: when the wrapper
    # is collected, the entry comes back to the pool.
    wrapper._pool_lease = (pool, entry)
    entry.lessee = weakref.ref(wrapper)
    wrapper.__dict__.update(entry.facts)
    wrapper.autocommit = wrapper.settings_dict["AUTOCOMMIT"]
    wrapper.connection = entry.connection
    if wrapper._pool_thread is None and wrapper._thread_ident == get_ident():
        wrapper._pool_thread = current_thread()
    if connection_created.receivers:
        connection_created.send(sender=wrapper.__class__, connection=wrapper)
    wrapper.run_on_commit = []


def give_back(wrapper):
    """
    Close a wrapper that borrowed: the part of BaseDatabaseWrapper.close().

    Return whether that is all. It isn't when somebody has put a connection of
    their own in the place of the one borrowed.
    """
    wrapper.validate_thread_sharing()
    pool, entry = wrapper._pool_lease
    if wrapper.connection is not entry.connection:
        _forsake(wrapper)
        return False
    wrapper.run_on_commit = []
    wrapper._pool_lease = None
    entry.lessee = None
    session = entry.session
    session.autocommit = wrapper.autocommit
    if wrapper.errors_occurred:
        session.is_suspect = True
    if wrapper.in_atomic_block:
        # As without a pool, the transaction is lost and the wrapper can't be
        # used before the block ends. Its connection stays, but is closed.
        wrapper.closed_in_transaction = True
        wrapper.needs_rollback = True
        pool.discard(entry)
    else:
        wrapper.connection = None
        pool.release(entry)
    return True


def _forsake(wrapper):
    """
    Give up the lease of a connection that isn't the wrapper's anymore.

    Somebody set `connection` by hand. They may put it back, so the pool
    neither closes it nor lends it to others. It doesn't count it anymore, nor
    does it keep it alive: without a pool, the driver would close it when it's
    collected.
    """
    pool, entry = wrapper._pool_lease
    wrapper._pool_lease = None
    entry.connection = entry.session.wrapper.connection = None
    pool.discard(entry)


def close_pool(wrapper):
    """Close a wrapper's pool. Its next use makes a new one."""
    if (pool := get_pool(wrapper)) is not None:
        pools.close_pool(pool)


# The connector.


class Session:
    """What the connector remembers of a pooled connection's session."""

    __slots__ = ("wrapper", "initial_state", "autocommit", "is_suspect", "notes")

    def __init__(self, wrapper):
        # The wrapper that initialized the connection: the pool's own, unknown
        # to any request.
        self.wrapper = wrapper
        # What read_state() returned after that.
        self.initial_state = None
        # What the last wrapper believed.
        self.autocommit = wrapper.autocommit
        # Whether an error cast doubt on the connection.
        self.is_suspect = False
        # Room for receivers of connection_created that prepare the driver's
        # connection, and need to do so only once.
        self.notes = {}


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
        entry.session = Session(wrapper)
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
        session.is_suspect = False
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
        # In a failed transaction not even a check would succeed.
        self.roll_back_if_needed(entry)
        self.restore_state(entry)
        if session.is_suspect:
            if not self.check(entry):
                return False
            session.is_suspect = False
        return self.reset_session(entry) if full else True

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

        Return False if the server can't do that; a new connection will.
        """
        return False

    def connection_limit(self, wrapper):
        """
        Return how many connections the server takes of this user, or None if
        it can't be told.
        """
        return None

    # Lessees.

    def reclaim(self, entry):
        wrapper = self._get_lessee(entry)
        if (
            wrapper is None
            or wrapper.allow_thread_sharing
            or wrapper._pool_thread is None
            or wrapper._pool_thread.is_alive()
        ):
            return False
        wrapper._pool_lease = None
        wrapper.connection = None
        entry.lessee = None
        entry.session.is_suspect = True
        entry.session.autocommit = wrapper.autocommit
        return True

    def abandon(self, entry):
        wrapper = self._get_lessee(entry)
        if wrapper is not None:
            wrapper._pool_lease = None
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
        return wrapper if lease is not None and lease[1] is entry else None
