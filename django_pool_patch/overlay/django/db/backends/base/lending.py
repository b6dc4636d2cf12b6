"""
A DatabaseWrapper's part in pooling: when it borrows a connection, and when it
gives it back.

In session mode that is from the first query until close(). In transaction
mode it's for one statement in autocommit mode, or for one transaction, unless
something is to last for longer: see give_back_unless_needed().
"""

import functools
import logging
import weakref
from _thread import get_ident
from asyncio import _get_running_loop
from contextlib import contextmanager
from threading import current_thread

from django.db.backends.base.statements import TRANSACTION
from django.db.backends.signals import connection_created
from django.db.pool.exceptions import PoolClosed
from django.db.pool.registry import pools

logger = logging.getLogger("django.db.pool")

# Reasons for which a wrapper keeps a connection, besides those of statements.
BY_HAND = "by hand"
AUTOCOMMIT_OFF = "autocommit off"


# The cursors of a connection that doesn't go back for want of them: a cursor
# may have got it in the place of one that did. Nothing is ever added.
_NO_CURSORS = set()


class Lease:
    """
    What a wrapper borrowed. It lasts until the wrapper is closed.

    * pool, entry: what was borrowed; entry is None once it was given back, be
      it for a moment, between two statements.
    * lessee: weak reference to the wrapper, for the entry.
    * facts: what the wrapper was told about the connection.
    * by_statement: whether it goes back as soon as it's not needed.
    * cursors: the identifiers of the cursors that need it, if by_statement.
      It's a set because a finalizer in another thread may remove one.
    * named_cursors: how many cursors exist on the server too.
    * pin_reason: why it's kept until the wrapper is closed, or None.
    * is_prepared: False while the receivers of connection_created are at work.
    """

    # Each statement reads most of them.
    __slots__ = (
        "pool",
        "entry",
        "lessee",
        "facts",
        "by_statement",
        "cursors",
        "named_cursors",
        "pin_reason",
        "is_prepared",
    )

    def __init__(self, wrapper, pool, entry, by_statement):
        self.pool = pool
        self.entry = entry
        self.lessee = entry.lessee = weakref.ref(wrapper)
        self.facts = entry.facts
        self.by_statement = by_statement
        self.cursors = set() if by_statement else _NO_CURSORS
        self.named_cursors = 0
        self.pin_reason = None
        self.is_prepared = True


# What a closed cursor's connection was borrowed by.
NO_LEASE = Lease.__new__(Lease)
NO_LEASE.entry = None


def set_up(wrapper):
    """Give a new wrapper the attributes that pooling needs."""
    # Set in each object instead of having defaults in the class: Python looks
    # up what may be in both places more slowly.
    #
    # What the connection was borrowed by, if it's borrowed.
    wrapper._pool_lease = None
    # The thread that borrowed it, when it's the wrapper's own.
    wrapper._pool_thread = None
    # How many methods are using the connection, and blocks of pinned().
    wrapper._pool_busy = 0
    wrapper._pool_pins = 0
    # Whether connection_created was sent, in transaction mode.
    wrapper._pool_has_announced = False


def close_pool(wrapper):
    """Close a wrapper's pool. Its next use makes a new one."""
    if (pool := wrapper.connection_pool) is not None:
        pools.close_pool(pool)


# Borrowing.


def borrow(wrapper, pool):
    """
    Connect a wrapper by means of a pool: BaseDatabaseWrapper.connect() with
    one that has been initialized already.
    """
    wrapper.check_settings()
    if (lease := wrapper._pool_lease) is not None:
        _forsake(wrapper, lease)
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
        closed_pool, pool = pool, wrapper.connection_pool
        if pool is closed_pool or pool is None:
            raise
        entry = pool.acquire()
    # From here on the lease is what keeps the entry alive: when the wrapper
    # is collected, the entry comes back to the pool.
    by_statement = pool.options.mode == "transaction"
    lease = wrapper._pool_lease = Lease(wrapper, pool, entry, by_statement)
    wrapper.__dict__.update(entry.facts)
    wrapper.autocommit = wrapper.settings_dict["AUTOCOMMIT"]
    wrapper.connection = entry.connection
    if wrapper._pool_thread is None and wrapper._thread_ident == get_ident():
        wrapper._pool_thread = current_thread()
    if wrapper._pool_pins:
        _mark_for_reset(entry)
    if connection_created.receivers:
        _send_connection_created(wrapper, lease)
    wrapper.run_on_commit = []


def borrow_again(wrapper, lease):
    """
    Connect a wrapper that has given back what it borrowed for a statement, and
    has not been closed or connected by others since, so that nothing else is
    to be set. Without success connect() does it, or tells what is wrong.

    As with a connection that stays open, settings that changed are heeded
    after close().
    """
    try:
        entry = lease.pool.acquire()
    except PoolClosed:
        return
    except Exception:
        with wrapper.wrap_database_errors:
            raise
    lease.entry = entry
    entry.lessee = lease.lessee
    if lease.facts is not entry.facts:
        lease.facts = entry.facts
        wrapper.__dict__.update(entry.facts)
    wrapper.connection = entry.connection
    if connection_created.receivers:
        _send_connection_created(wrapper, lease)


def _send_connection_created(wrapper, lease):
    """
    Tell receivers of a connection, which is then as they want it to be.

    In session mode they are told whenever a wrapper takes one, like connect()
    does. In transaction mode that would be at each statement, so they are told
    of each connection, and by each wrapper, once.
    """
    entry, session = lease.entry, lease.entry.session
    if lease.by_statement and session.is_announced and wrapper._pool_has_announced:
        return
    wrapper._pool_has_announced = session.is_announced = True
    # They may run statements, which don't count as the user's.
    lease.is_prepared = False
    wrapper._pool_busy += 1
    try:
        connection_created.send(sender=wrapper.__class__, connection=wrapper)
    except BaseException:
        # Whoever uses it next has it prepared again, from the beginning.
        wrapper._pool_has_announced = session.is_announced = False
        _mark_for_reset(entry)
        raise
    finally:
        lease.is_prepared = True
        wrapper._pool_busy -= 1


def announce(alias, entry):
    """
    Have the receivers of connection_created prepare a connection that a task
    is going to use: by the running thread's wrapper, which has it meanwhile.
    """
    from django.db import connections

    entry.session.is_announced_to_tasks = True
    wrapper = connections[alias]
    wrapper.close()
    wrapper.autocommit = wrapper.settings_dict["AUTOCOMMIT"]
    # It goes back to the task.
    lease = Lease(wrapper, wrapper.connection_pool, entry, by_statement=False)
    lease.is_prepared = False
    wrapper._pool_lease = lease
    wrapper.__dict__.update(entry.facts)
    wrapper.connection = entry.connection
    try:
        connection_created.send(sender=wrapper.__class__, connection=wrapper)
    finally:
        _end_lease(wrapper, lease)


# Giving back.


def give_back(wrapper):
    """
    Close a wrapper that may have borrowed: the part of
    BaseDatabaseWrapper.close().

    Return whether that is all. It isn't when nothing was borrowed, or when
    somebody has put a connection of their own in the place of it.
    """
    lease = wrapper._pool_lease
    if lease is None:
        return False
    entry = lease.entry
    if entry is None:
        # It was given back after a statement.
        wrapper._pool_lease = None
        return False
    if wrapper._thread_ident != get_ident():
        wrapper.validate_thread_sharing()
    if wrapper.connection is not entry.connection:
        _forsake(wrapper, lease)
        return False
    wrapper.run_on_commit = []
    if wrapper.in_atomic_block:
        # As without a pool, the transaction is lost and the wrapper can't be
        # used before the block ends. Its connection stays, but is closed.
        wrapper.closed_in_transaction = True
        wrapper.needs_rollback = True
        wrapper._pool_lease = lease.entry = entry.lessee = None
        lease.pool.discard(entry)
    else:
        _end_lease(wrapper, lease)
        lease.pool.release(entry)
    return True


def give_back_unless_needed(wrapper, later=False):
    """
    Give back what was borrowed for a statement or a transaction that is over.

    `later` is for finalizers: they mustn't do what may need the lock.
    """
    # Paid at each statement, so there are no further calls here.
    lease = wrapper._pool_lease
    if (
        lease is None
        or not lease.by_statement
        # Somebody is still going to read.
        or lease.cursors
        # In a transaction, or between those that are managed by hand.
        or not wrapper.autocommit
        # The session was touched.
        or lease.pin_reason is not None
        # The wrapper is about to use it, or asked to keep it.
        or wrapper._pool_busy
        # Another thread may be using it.
        or wrapper._thread_sharing_count
    ):
        return
    entry = lease.entry
    if entry is None or wrapper.connection is not entry.connection:
        # It was given back, or isn't what was borrowed. close() and connect()
        # see to that.
        return
    # The lease is used again for the next statement. Meanwhile it mustn't
    # keep alive what another may lose. This comes before any call, which a
    # finalizer might interrupt in order to do the same.
    wrapper.connection = lease.entry = entry.lessee = None
    entry.session.autocommit = True
    if wrapper.errors_occurred or lease.named_cursors:
        _note_doubts(wrapper, lease, entry)
    if later:
        lease.pool.release_later(entry)
    else:
        lease.pool.release(entry)


def _end_lease(wrapper, lease):
    entry = lease.entry
    wrapper._pool_lease = wrapper.connection = lease.entry = entry.lessee = None
    entry.session.autocommit = wrapper.autocommit
    if wrapper.errors_occurred or lease.named_cursors:
        _note_doubts(wrapper, lease, entry)


def _note_doubts(wrapper, lease, entry):
    """Have the pool look closer at a session that may not be as it was."""
    if wrapper.errors_occurred:
        wrapper.errors_occurred = False
        entry.session.is_suspect = True
    if lease.named_cursors:
        lease.named_cursors = 0
        _mark_for_reset(entry)


def _forsake(wrapper, lease):
    """
    Give up the lease of a connection that isn't the wrapper's anymore.

    Somebody set `connection` by hand. They may put it back, so the pool
    neither closes it nor lends it to others. It doesn't count it anymore, nor
    does it keep it alive: without a pool, the driver would close it when it's
    collected.
    """
    entry = lease.entry
    wrapper._pool_lease = lease.entry = None
    if entry is not None:
        entry.connection = entry.session.wrapper.connection = None
        lease.pool.discard(entry)


def leave(wrapper, lease):
    """
    Do what give_back_unless_needed() does, in a finalizer.

    It may have interrupted anything, in any thread: nothing may be locked, and
    nothing changed that another thread is using.
    """
    if (
        wrapper._pool_lease is lease
        and wrapper._thread_ident == get_ident()
        and lease.pool.supports_release_later
    ):
        give_back_unless_needed(wrapper, later=True)


# Pinning.


def note_statement(wrapper, lease, sql):
    """Pin a connection if a statement about to be executed asks for that."""
    if lease.is_prepared and lease.pin_reason is None:
        statements = lease.pool.connector.session_statements
        pin(wrapper, lease, statements.find_touch(sql, wrapper.connection))


def note_call(wrapper, lease, procname, params):
    """Pin a connection if calling a procedure asks for that."""
    if lease.is_prepared and lease.pin_reason is None:
        statements = lease.pool.connector.session_statements
        pin(wrapper, lease, statements.find_touch_of_call(procname, params))


def pin(wrapper, lease, reason):
    """
    Keep a connection until the wrapper is closed, for some reason unless it's
    None. Then its session will be fully reset.
    """
    if reason is None:
        return
    if reason == TRANSACTION and (
        wrapper._pool_busy > wrapper._pool_pins or not wrapper.autocommit
    ):
        # It's Django that begins one.
        return
    lease.pin_reason = reason
    _mark_for_reset(lease.entry)
    _report_pin(lease, reason)


def _mark_for_reset(entry):
    entry.session.is_touched = entry.session.is_suspect = True


def _report_pin(lease, reason):
    lease.pool.count_pin(reason)
    logger.debug("Pool '%s': a session was touched (%s).", lease.pool.name, reason)


@contextmanager
def pinned(wrapper):
    """
    Keep the same connection for a block, for the sake of session state that
    isn't recognized. Yield the wrapper, which has a connection then.

    The session is fully reset when the connection goes back to its pool. That
    is at the end of the outermost block, unless something else asks to keep
    the connection. Without a pool, or in session mode, it's kept anyway.
    """
    wrapper._pool_pins += 1
    wrapper._pool_busy += 1
    try:
        wrapper.ensure_connection()
        lease = wrapper._pool_lease
        if wrapper._pool_pins == 1 and lease is not None and lease.entry is not None:
            _mark_for_reset(lease.entry)
            _report_pin(lease, BY_HAND)
        yield wrapper
    finally:
        wrapper._pool_busy -= 1
        wrapper._pool_pins -= 1
        give_back_unless_needed(wrapper)


def get_pin_reason(wrapper):
    """
    Why a borrowed connection is kept: what touched the session, or what asks
    for keeping it. None if it goes back as soon as it's not needed.
    """
    lease = wrapper._pool_lease
    if lease is None or lease.entry is None:
        return None
    if lease.pin_reason is None and wrapper._pool_pins:
        return BY_HAND
    if (
        lease.pin_reason is None
        and lease.by_statement
        and not wrapper.autocommit
        and not wrapper.in_atomic_block
    ):
        return AUTOCOMMIT_OFF
    return lease.pin_reason


# Decorators of BaseDatabaseWrapper's methods.


def ends_transaction(method):
    """Decorate what may end a transaction: set_autocommit()."""

    @functools.wraps(method)
    def maybe_end_transaction(self, *args, **kwargs):
        self._pool_busy += 1
        try:
            return method(self, *args, **kwargs)
        finally:
            self._pool_busy -= 1
            give_back_unless_needed(self)

    return maybe_end_transaction


def follows_transaction(method):
    """
    Decorate what calls functions after a transaction has ended, but before
    that has been told to everybody: run_and_clear_commit_hooks().
    """

    @functools.wraps(method)
    def do_without_connection(self):
        busy, self._pool_busy = self._pool_busy, self._pool_pins
        try:
            give_back_unless_needed(self)
            return method(self)
        finally:
            self._pool_busy = busy

    return do_without_connection


def knows_autocommit(method):
    """Decorate get_autocommit(), which connects in order to tell."""

    @functools.wraps(method)
    def get_autocommit(self):
        if self.connection is not None:
            # Asked at the end of each request, what is known needs no further
            # call. In a running loop there's an error to raise.
            if self._pool_lease is not None and _get_running_loop() is None:
                return self.autocommit
        elif (
            not self.in_atomic_block
            and self.settings_dict["AUTOCOMMIT"]
            and (pool := self.connection_pool) is not None
            and pool.options.mode == "transaction"
        ):
            return True
        return method(self)

    return get_autocommit
