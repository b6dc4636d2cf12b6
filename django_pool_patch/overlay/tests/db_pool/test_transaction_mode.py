import gc
import threading
import unittest
import warnings
from io import StringIO
from unittest import mock

from django.db import (
    DatabaseError,
    Error,
    InterfaceError,
    ProgrammingError,
    connection,
    models,
    transaction,
)
from django.db.backends.base import lending
from django.db.backends.signals import connection_created
from django.db.pool import NullPool, PoolTimeout
from django.db.transaction import TransactionManagementError
from django.test import override_settings
from django.test.utils import CaptureQueriesContext, isolate_apps

from .models import Item
from .test_lending import LendingTestCase

# A statement that touches the session without doing any harm, and the reason
# that is given for it.
TOUCH = {
    "postgresql": ("SET application_name = 'touched'", "setting"),
    "mysql": ("SET @touched = 1", "user variable"),
    "sqlite": ("PRAGMA cache_size = 1234", "setting"),
    "oracle": ("ALTER SESSION SET NLS_SORT = BINARY", "setting"),
}


with isolate_apps("db_pool"):

    class Temporary(models.Model):
        class Meta:
            app_label = "db_pool"
            db_table = "db_pool_temporary"


class TransactionModeTestCase(LendingTestCase):
    def make_wrapper(self, changes=None, **options):
        return super().make_wrapper(changes, **{"mode": "transaction", **options})

    def atomic(self, wrapper, **kwargs):
        """Return an atomic block on a wrapper that connections don't know."""
        get_connection = mock.patch.object(
            transaction, "get_connection", lambda using: wrapper
        )
        get_connection.start()
        self.addCleanup(get_connection.stop)
        return transaction.atomic(using="unused", **kwargs)

    def touch(self, wrapper):
        sql, reason = TOUCH[connection.vendor]
        with wrapper.cursor() as cursor:
            cursor.execute(sql)
        return reason

    def assertIdle(self, wrapper):
        self.assertIsNone(wrapper.connection)
        self.assertEqual(wrapper.connection_pool.stats().in_use, 0)

    def assertLent(self, wrapper):
        self.assertIsNotNone(wrapper.connection)
        self.assertEqual(wrapper.connection_pool.stats().in_use, 1)


class StatementTests(TransactionModeTestCase):
    def test_connection_is_lent_for_a_statement(self):
        wrapper = self.make_wrapper()
        with wrapper.cursor() as cursor:
            cursor.execute("SELECT 1" + connection.features.bare_select_suffix)
            self.assertLent(wrapper)
            self.assertEqual(cursor.fetchone()[0], 1)
            self.assertLent(wrapper)
        self.assertIdle(wrapper)

    def test_many_wrappers_share_a_connection(self):
        wrappers = [self.make_wrapper(max_size=1) for _ in range(5)]
        for _ in range(2):
            for wrapper in wrappers:
                self.assertEqual(self.select(wrapper), 1)
        stats = wrappers[0].connection_pool.stats()
        self.assertEqual((stats.acquired, stats.opened), (10, 1))

    def test_close(self):
        wrapper = self.make_wrapper()
        cursor = wrapper.cursor()
        cursor.execute("SELECT 1" + connection.features.bare_select_suffix)
        self.assertLent(wrapper)
        cursor.close()
        self.assertIdle(wrapper)
        # Nothing happens.
        if connection.vendor != "oracle":
            cursor.close()
        wrapper.close()
        wrapper.close_if_unusable_or_obsolete()

    def test_exhausted_cursors(self):
        sql = "SELECT name FROM db_pool_item"
        Item.objects.create(name="only")

        def all_of(cursor):
            return cursor.fetchall()

        def iterate(cursor):
            return list(cursor)

        def one_by_one(cursor):
            rows = [cursor.fetchone()]
            self.assertIsNone(cursor.fetchone())
            return rows

        def many(cursor):
            return cursor.fetchmany(10)

        wrapper = self.make_wrapper()
        for read in (all_of, iterate, one_by_one, many):
            with self.subTest(read.__name__):
                cursor = wrapper.cursor()
                cursor.execute(sql)
                self.assertLent(wrapper)
                self.assertEqual([tuple(row) for row in read(cursor)], [("only",)])
                if connection.vendor == "oracle":
                    self.assertLent(wrapper)
                    cursor.close()
                    continue
                self.assertIdle(wrapper)
                # There's nothing left, and nothing is borrowed for that.
                self.assertIsNone(cursor.fetchone())
                self.assertEqual(len(cursor.description), 1)
                self.assertIdle(wrapper)
                # It's as good as new.
                cursor.execute(sql)
                self.assertLent(wrapper)
                self.assertEqual(tuple(cursor.fetchone()), ("only",))
                cursor.close()
                self.assertIdle(wrapper)

    def test_changes_keep_the_connection(self):
        """The next statement may ask about them, as by LAST_INSERT_ID()."""
        sql = "INSERT INTO db_pool_item (name) VALUES ('a')"
        if connection.features.can_return_columns_from_insert:
            if connection.vendor != "oracle":
                sql += " RETURNING id"
        wrapper = self.make_wrapper()
        with wrapper.cursor() as cursor:
            cursor.execute(sql)
            if "RETURNING" in sql:
                self.assertEqual(len(cursor.fetchall()), 1)
            self.assertLent(wrapper)
        self.assertIdle(wrapper)

    def test_rows_left(self):
        for name in ("a", "b", "c"):
            Item.objects.create(name=name)
        wrapper = self.make_wrapper()
        with wrapper.cursor() as cursor:
            cursor.execute("SELECT name FROM db_pool_item")
            self.assertEqual(len(cursor.fetchmany(2)), 2)
            self.assertLent(wrapper)
            self.assertEqual(len(cursor.fetchmany(2)), 1)
        self.assertIdle(wrapper)

    def get_detached_cursor(self, wrapper):
        """Return a cursor that has returned all rows, and let go."""
        if connection.vendor == "oracle":
            self.skipTest("Oracle's cursors keep their connection.")
        cursor = wrapper.cursor()
        cursor.execute("SELECT 1")
        cursor.fetchall()
        return cursor

    def test_other_connection_when_used_again(self):
        wrapper, other = self.make_wrapper(), self.make_wrapper()
        cursor = wrapper.cursor()
        cursor.arraysize = 3
        cursor.execute("SELECT 1" + connection.features.bare_select_suffix)
        first = wrapper.connection
        cursor.fetchall()
        if connection.vendor == "oracle":
            cursor.close()
            self.skipTest("Oracle's cursors keep their connection.")
        other.ensure_connection()
        self.assertIs(other.connection, first)
        cursor.execute("SELECT 2")
        self.assertIsNot(wrapper.connection, first)
        self.assertEqual(cursor.fetchone()[0], 2)
        self.assertEqual(cursor.arraysize, 3)
        cursor.close()

    def test_connection_by_hand_when_used_again(self):
        wrapper = self.make_wrapper()
        cursor = self.get_detached_cursor(wrapper)
        wrapper.connection = own = wrapper.get_new_connection(
            wrapper.get_connection_params()
        )
        wrapper.set_autocommit(True)
        cursor.execute("SELECT 2")
        self.assertEqual(cursor.fetchone()[0], 2)
        cursor.close()
        self.assertIs(wrapper.connection, own)
        pool = wrapper.connection_pool
        wrapper.close()
        self.assertEqual((pool.stats().size, pool.stats().idle), (1, 1))

    def test_session_mode_when_used_again(self):
        wrapper = self.make_wrapper()
        cursor = self.get_detached_cursor(wrapper)
        wrapper.close()
        wrapper.close_pool()
        wrapper.settings_dict["POOL"] = {"mode": "session"}
        cursor.execute("SELECT 2")
        self.assertEqual(cursor.fetchall()[0][0], 2)
        cursor.execute("SELECT 3")
        self.assertEqual(cursor.fetchone()[0], 3)
        cursor.close()
        self.assertIsNotNone(wrapper.connection)

    def test_two_cursors(self):
        wrapper = self.make_wrapper()
        with wrapper.cursor() as first:
            first.execute("SELECT 1" + connection.features.bare_select_suffix)
            with wrapper.cursor() as second:
                second.execute("SELECT 2" + connection.features.bare_select_suffix)
                self.assertEqual(second.fetchall()[0][0], 2)
            self.assertLent(wrapper)
            self.assertEqual(first.fetchone()[0], 1)
        self.assertIdle(wrapper)

    def test_cursor_never_closed(self):
        wrapper = self.make_wrapper(max_size=1)
        for _ in range(3):
            wrapper.cursor().execute(
                "SELECT 1" + connection.features.bare_select_suffix
            )
            gc.collect()
            self.assertIsNone(wrapper.connection)
        other = self.make_wrapper(max_size=1)
        self.assertEqual(self.select(other), 1)
        stats = wrapper.connection_pool.stats()
        self.assertEqual((stats.in_use, stats.opened, stats.lost), (0, 1, 0))

    def test_cursor_collected_in_another_thread(self):
        wrapper = self.make_wrapper()
        cursors = [wrapper.cursor()]
        thread = threading.Thread(target=cursors.clear)
        thread.start()
        thread.join()
        # The wrapper may be in the midst of something.
        self.assertLent(wrapper)
        self.select(wrapper)
        self.assertIdle(wrapper)

    def test_failing_statement(self):
        wrapper = self.make_wrapper()
        with self.assertRaises(DatabaseError):
            self.select(wrapper, "SELECT nonsense FROM nowhere")
        self.assertIdle(wrapper)
        self.assertEqual(self.select(wrapper), 1)

    def test_finalizer_while_giving_back(self):
        """What is being given back isn't given back by a finalizer as well."""
        wrapper = self.make_wrapper()
        note_doubts = lending._note_doubts

        def be_interrupted(wrapper, lease, entry):
            lending.leave(wrapper, lease)
            note_doubts(wrapper, lease, entry)

        with mock.patch.object(lending, "_note_doubts", be_interrupted):
            with self.assertRaises(DatabaseError):
                self.select(wrapper, "SELECT nonsense FROM nowhere")
        self.assertIdle(wrapper)
        self.assertEqual(wrapper.connection_pool.stats().idle, 1)

    def test_constraint_checks_disabled(self):
        """Checks are off for whoever disabled them, and for nobody else."""
        wrapper, other = self.make_wrapper(), self.make_wrapper()
        with wrapper.constraint_checks_disabled():
            pinned = wrapper.connection
            self.select(wrapper)
            self.assertIs(wrapper.connection, pinned)
            # PostgreSQL defers checks within transactions; it has no such
            # switch.
            self.assertEqual(pinned is None, connection.vendor == "postgresql")
            self.select(other)
        wrapper.close()
        self.assertIdle(wrapper)

    def test_schema_editor(self):
        wrapper = self.make_wrapper()
        with wrapper.schema_editor() as editor:
            editor.create_model(Temporary)
            self.assertIsNotNone(editor.connection)
        wrapper.close()
        self.assertIdle(wrapper)
        with wrapper.cursor() as cursor:
            self.assertIn(
                "db_pool_temporary", wrapper.introspection.table_names(cursor)
            )
        with wrapper.schema_editor() as editor:
            editor.delete_model(Temporary)
        wrapper.close()
        self.assertIdle(wrapper)

    def test_failing_cursor(self):
        wrapper = self.make_wrapper()
        with mock.patch.object(wrapper, "create_cursor", side_effect=InterfaceError):
            with self.assertRaises(InterfaceError):
                wrapper.cursor()
        self.assertIdle(wrapper)

    def test_ensure_connection(self):
        """Who connects without a cursor keeps it until the next is closed."""
        wrapper = self.make_wrapper()
        wrapper.ensure_connection()
        self.assertLent(wrapper)
        self.assertIs(wrapper.is_usable(), True)
        self.select(wrapper)
        self.assertIdle(wrapper)

    def test_get_autocommit(self):
        wrapper = self.make_wrapper()
        self.assertIs(wrapper.get_autocommit(), True)
        self.assertIsNone(wrapper.connection)

    def test_cursor_of_a_closed_wrapper(self):
        """Nobody gets into a connection that is somebody else's."""
        for mode in ("session", "transaction"):
            with self.subTest(mode):
                wrapper = self.make_wrapper(mode=mode)
                cursor = wrapper.cursor()
                cursor.execute("SELECT 1" + connection.features.bare_select_suffix)
                wrapper.close()
                message = (
                    "The connection of this cursor was closed, and may be in use "
                    "by others. Get a new cursor."
                )
                with self.assertRaisesMessage(InterfaceError, message):
                    cursor.execute("SELECT 2")
                self.assertEqual(self.select(wrapper), 1)
                with self.assertRaisesMessage(InterfaceError, message):
                    cursor.execute("SELECT 2")
                cursor.close()
                message = "The cursor is closed. Get a new one."
                for _ in range(2):
                    with self.assertRaisesMessage(InterfaceError, message):
                        cursor.execute("SELECT 2")
                    wrapper.close()
                cursor.close()

    def test_queries_are_logged(self):
        wrapper = self.make_wrapper()
        with CaptureQueriesContext(wrapper) as queries:
            self.select(wrapper)
            self.assertIdle(wrapper)
        self.assertEqual(len(queries), 1)

    def test_execute_wrapper(self):
        wrapper = self.make_wrapper()
        calls = []

        def note(execute, sql, params, many, context):
            calls.append(sql)
            return execute(sql, params, many, context)

        with wrapper.execute_wrapper(note):
            self.select(wrapper)
        self.assertEqual(len(calls), 1)
        self.assertIdle(wrapper)

    def test_executemany(self):
        wrapper = self.make_wrapper()
        with wrapper.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO db_pool_item (name) VALUES (%s)", [("a",), ("b",)]
            )
        self.assertIdle(wrapper)
        self.assertEqual(self.names(), {"a", "b"})

    def test_shared_with_other_threads(self):
        wrapper = self.make_wrapper()
        wrapper.inc_thread_sharing()
        self.select(wrapper)
        self.assertLent(wrapper)
        wrapper.dec_thread_sharing()
        self.select(wrapper)
        self.assertIdle(wrapper)

    def test_wrapper_collected(self):
        wrapper = self.make_wrapper()
        pool = wrapper.connection_pool
        cursor = wrapper.cursor()
        cursor.execute("SELECT 1" + connection.features.bare_select_suffix)
        del wrapper, cursor
        # There may be a reference left, such as that of a cleanup function.
        self.doCleanups()
        self.assertEqual(pool.stats().in_use, 0)

    def test_null_pool(self):
        wrapper = self.make_wrapper(pool_class=NullPool)
        self.assertEqual(self.select(wrapper), 1)
        self.assertIdle(wrapper)

    def test_limit(self):
        first, second = (self.make_wrapper(max_size=1, timeout=0.05) for _ in range(2))
        self.warm_up(first.connection_pool, 1)
        with first.cursor():
            with self.assertRaises(PoolTimeout):
                self.select(second)
        self.assertEqual(self.select(second), 1)

    def test_error_that_casts_doubt(self):
        wrapper = self.make_wrapper()
        with self.assertRaises(DatabaseError):
            self.select(wrapper, "SELECT nonsense FROM nowhere")
        # It was looked at.
        self.assertEqual(wrapper.connection_pool.stats().resets, 1)
        self.select(wrapper)
        self.assertIs(wrapper.errors_occurred, False)


class AtomicTests(TransactionModeTestCase):
    def test_connection_is_lent_for_a_transaction(self):
        wrapper = self.make_wrapper()
        with self.atomic(wrapper):
            self.assertLent(wrapper)
            first = wrapper.connection
            self.insert(wrapper, "kept")
            self.select(wrapper)
            self.assertIs(wrapper.connection, first)
        self.assertIdle(wrapper)
        self.assertEqual(self.names(), {"kept"})

    def test_rollback(self):
        wrapper = self.make_wrapper()
        with self.assertRaises(ZeroDivisionError):
            with self.atomic(wrapper):
                self.insert(wrapper, "lost")
                1 / 0
        self.assertIdle(wrapper)
        self.assertEqual(self.names(), set())

    def test_savepoints(self):
        wrapper = self.make_wrapper()
        with self.atomic(wrapper):
            self.insert(wrapper, "outer")
            with self.assertRaises(ZeroDivisionError):
                with self.atomic(wrapper):
                    self.insert(wrapper, "inner")
                    1 / 0
            self.assertLent(wrapper)
        self.assertIdle(wrapper)
        self.assertEqual(self.names(), {"outer"})

    def test_durable(self):
        wrapper = self.make_wrapper()
        with self.atomic(wrapper, durable=True):
            self.insert(wrapper, "kept")
            with self.assertRaisesMessage(RuntimeError, "A durable atomic block"):
                with self.atomic(wrapper, durable=True):
                    pass
        self.assertIdle(wrapper)

    def test_on_commit(self):
        wrapper = self.make_wrapper()
        seen = []

        def look():
            seen.append(wrapper.connection)
            self.select(wrapper)
            seen.append(wrapper.connection)

        with self.atomic(wrapper):
            self.insert(wrapper, "kept")
            wrapper.on_commit(look)
            wrapper.on_commit(look)
        # Nothing is held while hooks do what they do.
        self.assertEqual(seen, [None, None, None, None])
        self.assertIdle(wrapper)
        # Outside of transactions they are called at once.
        wrapper.on_commit(look)
        self.assertIdle(wrapper)

    def test_failing_on_commit(self):
        wrapper = self.make_wrapper()
        with self.assertRaises(ZeroDivisionError):
            with self.atomic(wrapper):
                wrapper.on_commit(lambda: 1 / 0)
        self.assertIdle(wrapper)
        self.assertEqual(self.select(wrapper), 1)
        self.assertIdle(wrapper)

    def test_close_in_atomic_block(self):
        wrapper = self.make_wrapper()
        with self.atomic(wrapper):
            self.insert(wrapper, "lost")
            wrapper.close()
            # As without a pool: what there is is closed.
            with self.assertRaises(Error):
                self.select(wrapper)
        self.assertIdle(wrapper)
        self.assertEqual(self.names(), set())
        self.assertEqual(self.select(wrapper), 1)

    def test_cursor_that_outlives_the_transaction(self):
        wrapper = self.make_wrapper()
        with self.atomic(wrapper):
            cursor = wrapper.cursor()
            cursor.execute("SELECT 1" + connection.features.bare_select_suffix)
        self.assertLent(wrapper)
        cursor.close()
        self.assertIdle(wrapper)

    def test_manual_transactions(self):
        """A connection isn't given back between transactions."""
        wrapper = self.make_wrapper()
        wrapper.set_autocommit(False)
        first = wrapper.connection
        self.assertEqual(wrapper.pin_reason, "autocommit off")
        self.insert(wrapper, "kept")
        wrapper.commit()
        self.assertIs(wrapper.connection, first)
        self.insert(wrapper, "lost")
        wrapper.rollback()
        self.assertIs(wrapper.connection, first)
        wrapper.set_autocommit(True)
        self.assertIdle(wrapper)
        self.assertIsNone(wrapper.pin_reason)
        self.assertEqual(self.names(), {"kept"})

    def test_autocommit_off(self):
        """Without autocommit, a wrapper keeps its connection."""
        wrapper = self.make_wrapper({"AUTOCOMMIT": False})
        self.insert(wrapper, "kept")
        self.assertLent(wrapper)
        wrapper.commit()
        self.assertLent(wrapper)
        wrapper.close()
        self.assertIdle(wrapper)

    def test_raw_transaction(self):
        if connection.vendor == "oracle":
            self.skipTest("Oracle has no statement for that.")
        wrapper = self.make_wrapper()
        with wrapper.cursor() as cursor:
            cursor.execute("BEGIN")
        first = wrapper.connection
        self.insert(wrapper, "lost")
        self.assertIs(wrapper.connection, first)
        self.assertEqual(wrapper.pin_reason, "transaction")
        wrapper.close()
        self.assertEqual(self.names(), set())

    def test_manual_errors(self):
        wrapper = self.make_wrapper()
        with self.atomic(wrapper):
            for method in (wrapper.commit, wrapper.rollback):
                with self.assertRaises(TransactionManagementError):
                    method()
        self.assertIdle(wrapper)


class PinningTests(TransactionModeTestCase):
    def test_touched_session_is_kept(self):
        wrapper = self.make_wrapper()
        with self.assertLogs("django.db.pool", "DEBUG") as logs:
            reason = self.touch(wrapper)
        self.assertIn("a session was touched (%s)." % reason, "".join(logs.output))
        self.assertLent(wrapper)
        self.assertEqual(wrapper.pin_reason, reason)
        first = wrapper.connection
        self.select(wrapper)
        with self.atomic(wrapper):
            self.select(wrapper)
        self.assertIs(wrapper.connection, first)
        self.assertEqual(wrapper.connection_pool.stats().pins, ((reason, 1),))
        wrapper.close()
        self.assertIdle(wrapper)
        self.assertIsNone(wrapper.pin_reason)

    def test_touched_session_is_reset(self):
        for mode in ("session", "transaction"):
            with self.subTest(mode):
                wrapper = self.make_wrapper(mode=mode)
                pool = wrapper.connection_pool
                self.touch(wrapper)
                resets = pool.stats().resets
                wrapper.close()
                self.assertEqual(pool.stats().resets, resets + 1)
                self.select(wrapper)
                wrapper.close()
                self.assertEqual(pool.stats().resets, resets + 1)

    def test_pinned(self):
        wrapper = self.make_wrapper()
        with wrapper.pinned() as same:
            self.assertIs(same, wrapper)
            self.assertLent(wrapper)
            self.assertEqual(wrapper.pin_reason, "by hand")
            first = wrapper.connection
            self.select(wrapper)
            with wrapper.pinned():
                with self.atomic(wrapper):
                    pass
            self.assertIs(wrapper.connection, first)
        self.assertIdle(wrapper)
        stats = wrapper.connection_pool.stats()
        self.assertEqual((stats.pins, stats.resets), ((("by hand", 1),), 1))

    def test_pinned_when_closed(self):
        wrapper = self.make_wrapper()
        with wrapper.pinned():
            wrapper.close()
            self.assertIsNone(wrapper.connection)
            self.select(wrapper)
            self.assertLent(wrapper)
        self.assertIdle(wrapper)
        self.assertEqual(wrapper.connection_pool.stats().resets, 2)

    def test_pinned_and_touched(self):
        wrapper = self.make_wrapper()
        with wrapper.pinned():
            reason = self.touch(wrapper)
            self.assertEqual(wrapper.pin_reason, reason)
        self.assertLent(wrapper)
        wrapper.close()
        self.assertIdle(wrapper)

    def test_pinned_and_transaction_begun(self):
        if connection.vendor == "oracle":
            self.skipTest("Oracle has no statement for that.")
        wrapper = self.make_wrapper()
        with wrapper.pinned():
            with wrapper.cursor() as cursor:
                cursor.execute("BEGIN")
            self.assertEqual(wrapper.pin_reason, "transaction")
        self.assertLent(wrapper)
        wrapper.close()
        self.assertIdle(wrapper)

    def test_pinned_while_committing(self):
        wrapper, seen = self.make_wrapper(), []
        with wrapper.pinned():
            first = wrapper.connection
            with self.atomic(wrapper):
                wrapper.on_commit(lambda: seen.append(wrapper.connection))
        self.assertEqual(seen, [first])
        self.assertIdle(wrapper)

    def test_pinned_with_a_connection_by_hand(self):
        """It isn't the pool's, so there's nothing to pin."""
        wrapper = self.make_wrapper()
        self.select(wrapper)
        wrapper.connection = own = wrapper.get_new_connection(
            wrapper.get_connection_params()
        )
        wrapper.set_autocommit(True)
        with wrapper.pinned():
            self.assertEqual(self.select(wrapper), 1)
            self.assertIsNone(wrapper.pin_reason)
        self.assertIs(wrapper.connection, own)
        pool = wrapper.connection_pool
        wrapper.close()
        self.assertIsNone(wrapper.connection)
        self.assertEqual((pool.stats().idle, pool.stats().pins), (1, ()))

    def test_pinned_without_transaction_mode(self):
        for changes, options in [({}, {"mode": "session"}), ({"POOL": False}, {})]:
            with self.subTest(changes=changes, options=options):
                wrapper = self.make_wrapper(changes, **options)
                with wrapper.pinned():
                    self.assertEqual(self.select(wrapper), 1)
                self.assertIsNotNone(wrapper.connection)
                wrapper.close()

    def test_end_of_request(self):
        wrapper = self.make_wrapper()
        self.touch(wrapper)
        wrapper.close_if_unusable_or_obsolete()
        self.assertIdle(wrapper)


class SignalTests(TransactionModeTestCase):
    def setUp(self):
        super().setUp()
        self.seen = []

    def receive(self, receiver):
        connection_created.connect(receiver)
        self.addCleanup(connection_created.disconnect, receiver)

    def test_once_for_each_connection_and_wrapper(self):
        def receiver(connection, **kwargs):
            self.seen.append(connection)

        self.receive(receiver)
        first, second = self.make_wrapper(), self.make_wrapper()
        for _ in range(3):
            self.select(first)
        self.assertEqual(self.seen, [first])
        for _ in range(3):
            self.select(second)
            self.select(first)
        self.assertEqual(self.seen, [first, second])
        # A new physical connection.
        with first.cursor():
            self.select(second)
        self.assertEqual(self.seen, [first, second, second])

    def test_again_after_a_reset(self):
        def receiver(connection, **kwargs):
            self.seen.append(connection)

        self.receive(receiver)
        wrapper = self.make_wrapper()
        self.touch(wrapper)
        wrapper.close()
        self.select(wrapper)
        self.select(wrapper)
        self.assertEqual(self.seen, [wrapper] * 2)

    def test_receiver_that_closes_and_fails(self):
        def receiver(connection, **kwargs):
            connection.close()
            raise ValueError("Prepared by half.")

        wrapper = self.make_wrapper()
        self.receive(receiver)
        with self.assertRaisesMessage(ValueError, "Prepared by half."):
            wrapper.ensure_connection()
        self.assertIsNone(wrapper.connection)
        connection_created.disconnect(receiver)
        self.assertEqual(self.select(wrapper), 1)
        self.assertIdle(wrapper)

    def test_receivers_touch_nothing(self):
        """What they do is part of the session's initial state."""

        def receiver(connection, **kwargs):
            self.seen.append(connection)
            self.touch(connection)

        self.receive(receiver)
        for mode in ("session", "transaction"):
            with self.subTest(mode):
                wrapper = self.make_wrapper(mode=mode)
                self.select(wrapper)
                self.assertIsNone(wrapper.pin_reason)
                wrapper.close()
                self.select(wrapper)
                wrapper.close()
                stats = wrapper.connection_pool.stats()
                self.assertEqual((stats.in_use, stats.resets), (0, 0))
        self.assertEqual(len(self.seen), 3)


@unittest.skipUnless(connection.vendor == "sqlite", "SQLite only.")
class ScriptTests(TransactionModeTestCase):
    def test_executescript(self):
        wrapper = self.make_wrapper()
        for script, reason in [
            ("SELECT 1; SELECT 2;", None),
            ("SELECT 1; PRAGMA cache_size = 1234;", "setting"),
        ]:
            with self.subTest(script):
                with wrapper.cursor() as cursor:
                    cursor.executescript(script)
                self.assertEqual(wrapper.pin_reason, reason)


@override_settings(DEBUG=True)
class DebugTests(StatementTests):
    """The same with cursors that log."""


@unittest.skipUnless(connection.vendor == "postgresql", "Server-side cursors.")
class ServerSideCursorTests(TransactionModeTestCase):
    def chunks(self, wrapper):
        cursor = wrapper.chunked_cursor()
        cursor.execute("SELECT generate_series(1, 10)")
        return cursor

    def test_kept_until_closed(self):
        wrapper = self.make_wrapper()
        cursor = self.chunks(wrapper)
        self.assertEqual(len(cursor.fetchmany(7)), 7)
        self.assertEqual(len(cursor.fetchmany(7)), 3)
        self.assertLent(wrapper)
        cursor.close()
        self.assertIdle(wrapper)
        self.assertEqual(wrapper.connection_pool.stats().resets, 0)

    def test_left_open(self):
        """A cursor that is left on the server is closed there."""
        for mode in ("session", "transaction"):
            with self.subTest(mode):
                wrapper = self.make_wrapper(mode=mode)
                cursor = self.chunks(wrapper)
                wrapper.close()
                self.assertEqual(wrapper.connection_pool.stats().resets, 1)
                self.assertEqual(
                    self.select(wrapper, "SELECT COUNT(*) FROM pg_cursors"), 0
                )
                wrapper.close()
                with self.assertRaises(InterfaceError):
                    cursor.fetchmany(1)
                cursor.close()

    def test_never_closed(self):
        """The session is reset for the sake of such a cursor, but once."""
        wrapper = self.make_wrapper()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            self.chunks(wrapper)
            gc.collect()
        for _ in range(3):
            self.assertEqual(self.select(wrapper), 1)
            self.assertIdle(wrapper)
        self.assertEqual(wrapper.connection_pool.stats().resets, 1)

    def test_all_rows_read(self):
        for name in "abc":
            Item.objects.create(name=name)
        wrapper = self.make_wrapper()
        cursor = wrapper.chunked_cursor()
        cursor.execute("SELECT name FROM db_pool_item")
        self.assertEqual(len(list(cursor)), 3)
        self.assertLent(wrapper)
        cursor.close()
        self.assertIdle(wrapper)

    def test_copy(self):
        if not hasattr(self.make_wrapper().Database, "Copy"):
            self.skipTest("psycopg2 copies by other methods.")
        wrapper = self.make_wrapper()
        for debug in (False, True):
            with self.subTest(debug=debug), override_settings(DEBUG=debug):
                cursor = wrapper.cursor()
                cursor.execute("SELECT 1")
                cursor.fetchall()
                self.assertIdle(wrapper)
                with cursor.copy("COPY (SELECT 1) TO STDOUT") as copy:
                    self.assertLent(wrapper)
                    self.assertEqual(b"".join(bytes(data) for data in copy), b"1\n")
                cursor.close()
                self.assertIdle(wrapper)

    def test_copy_that_touches(self):
        wrapper = self.make_wrapper()
        sql = "COPY (SELECT set_config('db_pool.custom', 'x', false)) TO STDOUT"
        with wrapper.cursor() as cursor:
            if hasattr(wrapper.Database, "Copy"):
                with cursor.copy(sql) as copy:
                    list(copy)
            else:
                cursor.copy_expert(sql, StringIO())
        self.assertEqual(wrapper.pin_reason, "setting")
        wrapper.close()
        sql = "SELECT current_setting('db_pool.custom', true)"
        self.assertIn(self.select(wrapper, sql), (None, ""))

    def test_closed_in_atomic(self):
        wrapper = self.make_wrapper()
        with self.atomic(wrapper):
            cursor = self.chunks(wrapper)
            wrapper.close()
            with self.assertRaises((InterfaceError, ProgrammingError)):
                cursor.execute("SELECT 1")
        cursor.close()
        self.assertIdle(wrapper)
