import asyncio
import gc
import threading
import time
import unittest
import weakref
from contextlib import contextmanager
from unittest import mock

from django.core.exceptions import ImproperlyConfigured, SynchronousOnlyOperation
from django.db import (
    DatabaseError,
    Error,
    OperationalError,
    ProgrammingError,
    connection,
    transaction,
)
from django.db.backends.base.base import NO_DB_ALIAS
from django.db.backends.base.pool import DatabaseConnector
from django.db.backends.signals import connection_created
from django.db.pool import ConnectionPool, NullPool, PoolClosed, PoolTimeout, pools
from django.test import TransactionTestCase, override_settings

from .models import Item
from .utils import PATIENCE

if connection.vendor == "postgresql":
    from django.db.backends.postgresql.psycopg_any import IsolationLevel, is_psycopg3


class LendingTestCase(TransactionTestCase):
    """Tests of wrappers with a pool of their own, on the test database."""

    available_apps = ["db_pool"]

    @classmethod
    def setUpClass(cls):
        # The test database isn't known any sooner.
        if connection.vendor == "sqlite" and connection.is_in_memory_db():
            raise unittest.SkipTest("Databases in memory are never pooled.")
        super().setUpClass()

    def make_wrapper(self, changes=None, **options):
        """
        Return a wrapper that isn't known to connections.

        Wrappers made with the same arguments share a pool.
        """
        wrapper = connection.copy()
        wrapper.settings_dict.update(
            {
                "CONN_MAX_AGE": 0,
                "POOL": {"max_size": 2, "timeout": 10, **options},
                **(changes or {}),
            }
        )
        # Last in, first out.
        self.addCleanup(wrapper.close_pool)
        self.addCleanup(self.close, wrapper)
        return wrapper

    @staticmethod
    def make_wrapper_class(**attributes):
        """
        Return a class of wrappers to patch. Other pools may be connecting in
        other threads with the one that it's derived from.
        """
        return type("DatabaseWrapper", (type(connection.copy()),), attributes)

    @staticmethod
    def warm_up(pool, number):
        """Have a pool's connections open, for however short its timeout is."""
        entries = [pool.acquire(timeout=PATIENCE) for _ in range(number)]
        for entry in entries:
            pool.release(entry)

    @staticmethod
    def close(wrapper):
        wrapper.inc_thread_sharing()
        wrapper.close()

    def select(self, wrapper, sql="SELECT 1", params=None):
        with wrapper.cursor() as cursor:
            cursor.execute(sql + connection.features.bare_select_suffix, params)
            return cursor.fetchone()[0]

    def use(self, wrapper):
        """Use a wrapper like a request does. Return the driver's object."""
        self.assertEqual(self.select(wrapper), 1)
        driver_connection = wrapper.connection
        wrapper.close_if_unusable_or_obsolete()
        self.assertIsNone(wrapper.connection)
        return driver_connection

    def insert(self, wrapper, name):
        with wrapper.cursor() as cursor:
            cursor.execute("INSERT INTO db_pool_item (name) VALUES (%s)", [name])

    def names(self):
        return set(Item.objects.values_list("name", flat=True))

    def idle_entry(self, pool):
        entry = pool.acquire()
        pool.release(entry)
        return entry


class LendingTests(LendingTestCase):
    def test_connection_is_reused(self):
        first = self.make_wrapper()
        second = self.make_wrapper()
        self.assertIs(first.connection_pool, second.connection_pool)
        self.assertIs(self.use(first), self.use(second))
        stats = first.connection_pool.stats()
        self.assertEqual((stats.acquired, stats.opened, stats.idle), (2, 1, 1))

    def test_connections_in_use_differ(self):
        first = self.make_wrapper()
        second = self.make_wrapper()
        first.ensure_connection()
        second.ensure_connection()
        self.assertIsNot(first.connection, second.connection)
        self.assertEqual(first.connection_pool.stats().in_use, 2)

    def test_limit(self):
        first, second, third = (self.make_wrapper(timeout=0.05) for _ in range(3))
        self.warm_up(first.connection_pool, 2)
        first.ensure_connection()
        second.ensure_connection()
        message = (
            "Couldn't acquire a connection to 'default' within 0.05 seconds "
            "(max_size=2, 2 in use, 1 waiting). Raise max_size or shorten "
            "transactions."
        )
        with self.assertRaisesMessage(PoolTimeout, message):
            third.ensure_connection()
        with self.assertRaises(OperationalError):
            third.ensure_connection()
        first.close()
        self.assertEqual(self.select(third), 1)

    def test_initialized_once(self):
        wrapper_class = self.make_wrapper_class()
        with (
            mock.patch.object(
                wrapper_class,
                "get_new_connection",
                autospec=True,
                side_effect=wrapper_class.get_new_connection,
            ) as get_new_connection,
            mock.patch.object(
                wrapper_class,
                "init_connection_state",
                autospec=True,
                side_effect=wrapper_class.init_connection_state,
            ) as init_connection_state,
        ):
            for _ in range(5):
                wrapper = self.make_wrapper()
                wrapper.__class__ = wrapper_class
                self.use(wrapper)
        self.assertEqual(get_new_connection.call_count, 1)
        self.assertEqual(init_connection_state.call_count, 1)

    def test_connection_created_is_sent_to_each_wrapper(self):
        received = []

        def receiver(connection, **kwargs):
            received.append((connection, connection.connection))

        connection_created.connect(receiver)
        self.addCleanup(connection_created.disconnect, receiver)
        first = self.make_wrapper()
        second = self.make_wrapper()
        driver_connection = self.use(first)
        self.use(second)
        self.assertEqual(
            received, [(first, driver_connection), (second, driver_connection)]
        )

    def test_receiver_may_fail(self):
        def receiver(**kwargs):
            raise ValueError("receiver")

        connection_created.connect(receiver)
        self.addCleanup(connection_created.disconnect, receiver)
        wrapper = self.make_wrapper(max_size=1)
        with self.assertRaisesMessage(ValueError, "receiver"):
            wrapper.ensure_connection()
        connection_created.disconnect(receiver)
        wrapper.close()
        self.use(wrapper)

    @unittest.skipIf(connection.vendor == "postgresql", "It's for PostgreSQL.")
    def test_receiver_for_another_vendor(self):
        """contrib.postgres leaves the connections of others alone."""
        try:
            from django.contrib.postgres.signals import register_type_handlers
        except ImportError:
            self.skipTest("There is no psycopg.")
        connection_created.connect(register_type_handlers)
        self.addCleanup(connection_created.disconnect, register_type_handlers)
        self.use(self.make_wrapper())

    def test_connecting_while_wrappers_may_not(self):
        """
        The pool connects, and resets, even where something keeps wrappers from
        it by replacing their class's method, as pytest-django does.
        """
        wrapper = self.make_wrapper(min_size=1, reset="always")
        pool = wrapper.connection_pool
        error = RuntimeError("Database access not allowed")
        with mock.patch.object(
            type(wrapper), "ensure_connection", autospec=True, side_effect=error
        ):
            pool.wait(timeout=PATIENCE)
            wrapper.connect()
            wrapper.close()
            with self.assertRaisesMessage(RuntimeError, str(error)):
                wrapper.cursor()
        stats = pool.stats()
        self.assertEqual((stats.connect_errors, stats.resets), (0, 1))
        self.use(wrapper)

    def test_facts_are_handed_over(self):
        """A new wrapper asks the server nothing that is known already."""
        self.use(self.make_wrapper())
        wrapper = self.make_wrapper()
        statements = []

        def record(execute, sql, params, many, context):
            statements.append(sql)
            return execute(sql, params, many, context)

        with wrapper.execute_wrapper(record):
            wrapper.ensure_connection()
            wrapper.get_database_version()
            if wrapper.vendor == "mysql":
                wrapper.mysql_server_data
                wrapper.features.is_sql_auto_is_null_enabled
        self.assertEqual(statements, [])

    def test_no_wrapper_is_kept(self):
        wrapper = self.make_wrapper()
        self.use(wrapper)
        pool = wrapper.connection_pool
        entry = self.idle_entry(pool)
        self.assertIsNot(entry.session.wrapper, wrapper)
        self.assertIsNone(entry.lessee)
        for value in entry.facts.values():
            self.assertIsNot(getattr(value, "connection", None), wrapper)

    def test_autocommit_is_not_told_in_a_loop(self):
        wrapper = self.make_wrapper()
        wrapper.ensure_connection()

        async def ask():
            return wrapper.get_autocommit()

        self.assertIs(wrapper.get_autocommit(), True)
        with self.assertRaises(SynchronousOnlyOperation):
            asyncio.run(ask())

    def test_autocommit_off_in_settings(self):
        wrapper = self.make_wrapper({"AUTOCOMMIT": False})
        self.assertIs(wrapper.get_autocommit(), False)
        self.insert(wrapper, "kept")
        wrapper.commit()
        self.insert(wrapper, "dropped")
        wrapper.close()
        self.assertIs(wrapper.get_autocommit(), False)
        self.assertEqual(self.names(), {"kept"})
        wrapper.rollback()

    def test_health_check_setting(self):
        wrapper = self.make_wrapper({"CONN_HEALTH_CHECKS": True})
        self.use(wrapper)
        self.assertEqual(wrapper.connection_pool.connector.ping_after, 0.5)
        pool = wrapper.connection_pool
        self.assertEqual(pool.stats().checks, 0)
        pool._core.distrust()
        self.use(wrapper)
        self.assertEqual(pool.stats().checks, 1)

    def test_thread_sharing_is_validated(self):
        wrapper = self.make_wrapper()
        wrapper.ensure_connection()
        errors = []

        def close():
            try:
                wrapper.close()
            except DatabaseError as e:
                errors.append(str(e))

        thread = threading.Thread(target=close)
        thread.start()
        thread.join()
        self.assertIn("can only be used in that same thread", errors[0])
        self.assertIsNotNone(wrapper.connection)

    def test_temporary_connection(self):
        wrapper = self.make_wrapper()
        with wrapper.temporary_connection() as cursor:
            cursor.execute("SELECT 1" + connection.features.bare_select_suffix)
            self.assertEqual(wrapper.connection_pool.stats().in_use, 1)
        self.assertEqual(wrapper.connection_pool.stats().in_use, 0)

    def test_connect_error(self):
        wrapper = self.make_wrapper()
        wrapper.__class__ = self.make_wrapper_class()
        error = wrapper.Database.OperationalError("no server")
        with mock.patch.object(type(wrapper), "get_new_connection", side_effect=error):
            with self.assertRaisesMessage(OperationalError, "no server"):
                wrapper.ensure_connection()
        self.assertEqual(wrapper.connection_pool.stats().connect_errors, 1)
        self.use(wrapper)

    def test_changed_password(self):
        """Credentials are read for each physical connection."""
        passwords = []
        wrapper = self.make_wrapper({"PASSWORD": "first"})
        wrapper.__class__ = self.make_wrapper_class()

        def get_new_connection(wrapper, params):
            passwords.append(wrapper.settings_dict["PASSWORD"])
            raise wrapper.Database.OperationalError("wrong password")

        with mock.patch.object(type(wrapper), "get_new_connection", get_new_connection):
            for password in ("first", "second"):
                wrapper.settings_dict["PASSWORD"] = password
                pool = wrapper.connection_pool
                with self.assertRaises(OperationalError):
                    wrapper.ensure_connection()
        self.assertEqual(passwords, ["first", "second"])
        self.assertIs(wrapper.connection_pool, pool)

    def test_replaced_connection(self):
        """A connection that somebody put in place is theirs to close."""
        wrapper = self.make_wrapper()
        wrapper.ensure_connection()
        borrowed = wrapper.connection
        own = wrapper.get_new_connection(wrapper.get_connection_params())
        wrapper.connection = own
        wrapper.close()
        self.assertIsNone(wrapper.connection)
        self.assertEqual(wrapper.connection_pool.stats().size, 0)
        # Still open: it might have been put back.
        with self.assertRaises(wrapper.Database.Error):
            own.cursor().execute("SELECT 1")
        borrowed.cursor()
        borrowed.close()

    def test_forgotten_connection(self):
        wrapper = self.make_wrapper()
        wrapper.ensure_connection()
        forgotten = wrapper.connection
        wrapper.connection = None
        self.assertEqual(self.select(wrapper), 1)
        self.assertIsNot(wrapper.connection, forgotten)
        self.assertEqual(wrapper.connection_pool.stats().in_use, 1)
        forgotten.close()

    @unittest.skipIf(connection.vendor == "sqlite", "There are no weak references.")
    def test_nothing_keeps_a_forgotten_connection_alive(self):
        """It would be in the way of whoever drops its database."""
        wrapper = self.make_wrapper()
        wrapper.ensure_connection()
        forgotten = weakref.ref(wrapper.connection)
        # Or else collecting it is worth a warning.
        wrapper.connection.close()
        wrapper.connect()
        gc.collect()
        self.assertIsNone(forgotten())

    def test_connecting_without_the_pool(self):
        """Who switches POOL off finds the wrapper as if there were none."""
        wrapper = self.make_wrapper()
        wrapper.ensure_connection()
        pool, borrowed = wrapper.connection_pool, wrapper.connection
        self.addCleanup(pools.close_pool, pool)
        borrowed.close()
        wrapper.settings_dict["POOL"] = False
        wrapper.connect()
        self.assertEqual(self.select(wrapper), 1)
        self.assertIsNot(wrapper.connection, borrowed)
        wrapper.close()
        self.assertIsNone(wrapper.connection)
        self.assertEqual(pool.stats().size, 0)


class ReturningTests(LendingTestCase):
    def test_transaction_is_rolled_back(self):
        wrapper = self.make_wrapper()
        wrapper.set_autocommit(False)
        self.insert(wrapper, "lost")
        driver_connection = wrapper.connection
        wrapper.close()
        self.assertEqual(self.names(), set())
        self.assertEqual(self.select(wrapper), 1)
        self.assertIs(wrapper.connection, driver_connection)
        self.assertIs(wrapper.get_autocommit(), True)
        self.insert(wrapper, "kept")
        self.assertEqual(self.names(), {"kept"})
        self.assertEqual(wrapper.connection_pool.stats().resets, 1)

    def test_autocommit_left_off(self):
        wrapper = self.make_wrapper()
        wrapper.set_autocommit(False)
        wrapper.close_if_unusable_or_obsolete()
        self.assertIsNone(wrapper.connection)
        self.insert(wrapper, "kept")
        self.assertEqual(self.names(), {"kept"})

    def test_clean_needs_no_reset(self):
        wrapper = self.make_wrapper()
        self.insert(wrapper, "kept")
        wrapper.close()
        self.assertEqual(wrapper.connection_pool.stats().resets, 0)
        self.assertEqual(self.names(), {"kept"})

    @contextmanager
    def registered(self, wrapper):
        """Make atomic() find a wrapper under the alias 'default'."""
        with mock.patch.object(transaction, "get_connection", lambda using: wrapper):
            yield

    def test_closed_within_atomic(self):
        wrapper = self.make_wrapper(max_size=1)
        with self.registered(wrapper):
            with self.assertRaises(Error):
                with transaction.atomic():
                    self.insert(wrapper, "lost")
                    dirty = wrapper.connection
                    wrapper.close()
                    self.assertIs(wrapper.closed_in_transaction, True)
                    self.assertEqual(wrapper.connection_pool.stats().size, 0)
                    self.select(wrapper)
        self.assertIsNone(wrapper.connection)
        self.assertEqual(self.names(), set())
        self.assertIsNot(self.use(wrapper), dirty)

    def test_exception_within_atomic(self):
        wrapper = self.make_wrapper(max_size=1)
        with self.registered(wrapper):
            with self.assertRaisesMessage(ValueError, "in the view"):
                with transaction.atomic():
                    self.insert(wrapper, "lost")
                    raise ValueError("in the view")
        wrapper.close_if_unusable_or_obsolete()
        self.assertEqual(wrapper.connection_pool.stats().idle, 1)
        self.assertEqual(self.names(), set())

    def test_error_casts_doubt(self):
        """After an error, the connection has to prove that it lives."""
        wrapper = self.make_wrapper()
        with self.assertRaises(DatabaseError):
            self.select(wrapper, "SELECT nothing_like_that")
        driver_connection = wrapper.connection
        wrapper.close()
        self.assertIs(self.use(wrapper), driver_connection)
        self.assertEqual(wrapper.connection_pool.stats().resets, 1)

    def test_closed_by_hand(self):
        wrapper = self.make_wrapper()
        wrapper.ensure_connection()
        closed = wrapper.connection
        closed.close()
        with self.assertRaises(Error):
            self.select(wrapper)
        wrapper.close()
        self.assertIsNot(self.use(wrapper), closed)
        self.assertEqual(wrapper.connection_pool.stats().size, 1)

    def test_closed_by_hand_unnoticed(self):
        wrapper = self.make_wrapper()
        wrapper.ensure_connection()
        closed = wrapper.connection
        closed.close()
        wrapper.close()
        self.assertIsNot(self.use(wrapper), closed)
        self.assertEqual(wrapper.connection_pool.stats().size, 1)

    def test_reset_always(self):
        wrapper = self.make_wrapper(reset="always")
        with wrapper.cursor() as cursor:
            cursor.execute("CREATE TEMPORARY TABLE db_pool_temporary (id integer)")
        wrapper.close()
        with self.assertRaises(DatabaseError):
            self.select(wrapper, "SELECT id FROM db_pool_temporary")
        wrapper.close()
        self.use(wrapper)

    def test_reset_rollback(self):
        wrapper = self.make_wrapper(reset="rollback")
        wrapper.set_autocommit(False)
        self.insert(wrapper, "lost")
        wrapper.close()
        self.insert(wrapper, "kept")
        self.assertEqual(self.names(), {"kept"})
        wrapper.close()
        self.assertEqual(wrapper.connection_pool.stats().opened, 1)

    def test_reset_callable(self):
        cleaned = []
        wrapper = self.make_wrapper(reset=cleaned.append)
        driver_connection = self.use(wrapper)
        self.assertEqual(cleaned, [driver_connection])

    @unittest.skipIf(
        connection.vendor == "mysql", "The driver doesn't tell of transactions."
    )
    def test_reset_callable_that_leaves_a_transaction(self):
        """Nobody gets into another's transaction, whatever a callable does."""
        wrapper = self.make_wrapper(reset=lambda connection: None)
        with wrapper.cursor() as cursor:
            cursor.execute("BEGIN")
        self.insert(wrapper, "lost")
        wrapper.close()
        self.insert(wrapper, "kept")
        self.assertEqual(self.names(), {"kept"})

    def test_reset_callable_that_leaves_autocommit_off(self):
        wrapper = self.make_wrapper(reset=lambda connection: None)
        wrapper.set_autocommit(False)
        wrapper.close()
        self.insert(wrapper, "kept")
        self.assertEqual(self.names(), {"kept"})

    # What was just opened is taken to be healthy, also on a slow machine.
    @mock.patch("django.db.pool.threads.TRUST_IN_NEW", 60.0)
    def test_check_callable(self):
        checked = []

        def check(connection):
            checked.append(connection)
            return False

        wrapper = self.make_wrapper(check=check)
        first = self.use(wrapper)
        self.assertEqual(checked, [])
        self.assertIsNot(self.use(wrapper), first)
        self.assertEqual(checked, [first])
        self.assertEqual(wrapper.connection_pool.stats().check_failures, 1)

    def test_receiver_that_raises(self):
        """What it did is undone, and what follows is noted."""

        def fail(**kwargs):
            raise ValueError("receiver")

        for mode in ("session", "transaction"):
            with self.subTest(mode=mode):
                wrapper = self.make_wrapper(mode=mode)
                connection_created.connect(fail)
                try:
                    with self.assertRaisesMessage(ValueError, "receiver"):
                        self.select(wrapper)
                finally:
                    connection_created.disconnect(fail)
                self.assertEqual(self.select(wrapper), 1)
                wrapper.close()
                self.assertEqual(wrapper.connection_pool.stats().resets, 1)

    @unittest.skipUnless(
        connection.vendor == "postgresql" and is_psycopg3, "psycopg 3 only"
    )
    def test_attributes_of_the_drivers_connection(self):
        from psycopg.rows import dict_row, tuple_row

        wrapper = self.make_wrapper(max_size=1)
        driver_connection = self.use(wrapper)
        for name, value, initial in [
            ("read_only", True, None),
            ("deferrable", True, None),
            ("row_factory", dict_row, tuple_row),
            ("isolation_level", IsolationLevel.SERIALIZABLE, None),
        ]:
            with self.subTest(name=name):
                wrapper.ensure_connection()
                setattr(wrapper.connection, name, value)
                wrapper.close()
                wrapper.ensure_connection()
                self.assertIs(wrapper.connection, driver_connection)
                self.assertIs(getattr(wrapper.connection, name), initial)
                wrapper.close()

    def test_thread_that_ended(self):
        pool = self.make_wrapper(max_size=1).connection_pool
        wrappers = []

        def forget_to_close():
            # Alive after the thread, as within a reference cycle.
            wrappers.append(self.make_wrapper(max_size=1))
            self.insert(wrappers[0], "kept")
            wrappers[0].set_autocommit(False)
            self.insert(wrappers[0], "lost")

        thread = threading.Thread(target=forget_to_close)
        thread.start()
        thread.join()
        self.assertEqual(pool.stats().in_use, 1)
        self.use(self.make_wrapper(max_size=1))
        self.assertEqual(self.names(), {"kept"})
        self.assertIsNone(wrappers[0].connection)
        stats = pool.stats()
        self.assertEqual((stats.lost, stats.opened), (1, 1))

    def test_closing_after_a_thread_that_ended(self):
        """Who drops the database isn't hindered by what nobody uses."""
        pool = self.make_wrapper().connection_pool
        wrappers = []

        def forget_to_close():
            wrappers.append(self.make_wrapper())
            wrappers[0].ensure_connection()

        thread = threading.Thread(target=forget_to_close)
        thread.start()
        thread.join()
        self.assertEqual(pool.stats().in_use, 1)
        self.assertIs(pool.close(timeout=PATIENCE), True)
        self.assertIsNone(wrappers[0].connection)

    def test_wrapper_dropped_within_a_cycle(self):
        pool = self.make_wrapper(max_size=1).connection_pool
        wrapper = connection.copy()
        wrapper.settings_dict.update(pool.connector.settings_dict)
        self.assertIs(wrapper.connection_pool, pool)
        wrapper.set_autocommit(False)
        self.insert(wrapper, "lost")
        # Backends' operations, features and so on refer to their wrapper.
        del wrapper
        gc.collect()
        self.use(self.make_wrapper(max_size=1))
        self.assertEqual(pool.stats().lost, 1)
        self.assertEqual(self.names(), set())

    def test_wrapper_dropped_while_somebody_waits(self):
        """Before giving up, a waiter has garbage collected."""
        pool = self.make_wrapper(max_size=1, timeout=0.1).connection_pool
        self.warm_up(pool, 1)
        wrapper = connection.copy()
        wrapper.settings_dict.update(pool.connector.settings_dict)
        wrapper.ensure_connection()
        del wrapper
        with mock.patch("django.db.pool.threads._next_collection", 0):
            self.use(self.make_wrapper(max_size=1, timeout=0.1))
        self.assertEqual(pool.stats().lost, 1)


class RegistryTests(LendingTestCase):
    def test_wrapper_without_pool(self):
        wrapper = self.make_wrapper({"POOL": False})
        self.assertIsNone(wrapper.connection_pool)
        wrapper.ensure_connection()
        self.assertIsNone(wrapper._pool_lease)

    def test_nodb_cursor(self):
        """Connections to none of the project's databases aren't pooled."""
        wrapper = self.make_wrapper()
        with (
            mock.patch.object(type(wrapper), "cursor", autospec=True) as cursor,
            mock.patch.object(type(wrapper), "close"),
            wrapper._nodb_cursor(),
        ):
            (unpooled,) = cursor.call_args.args
            self.assertEqual(unpooled.alias, NO_DB_ALIAS)
            self.assertIsNone(unpooled.connection_pool)

    def test_asking_opens_nothing(self):
        wrapper = self.make_wrapper(min_size=1)
        self.assertEqual(wrapper.connection_pool.stats().opened, 0)
        self.assertIsNone(wrapper.connection)

    def test_another_database_another_pool(self):
        wrapper = self.make_wrapper()
        other = self.make_wrapper({"NAME": "another"})
        self.assertIsNot(wrapper.connection_pool, other.connection_pool)

    def test_another_alias_another_pool(self):
        wrapper = self.make_wrapper()
        other = self.make_wrapper()
        other.alias = "another"
        self.assertIsNot(wrapper.connection_pool, other.connection_pool)

    def test_changed_settings_close_the_pool(self):
        wrapper = self.make_wrapper()
        self.use(wrapper)
        pool = wrapper.connection_pool
        self.assertEqual(pool.stats().idle, 1)
        wrapper.settings_dict["NAME"] = "another"
        self.assertIsNot(wrapper.connection_pool, pool)
        self.assertEqual(pool.stats().size, 0)
        wrapper.settings_dict["NAME"] = connection.settings_dict["NAME"]
        self.assertIsNot(wrapper.connection_pool, pool)
        self.use(wrapper)

    def test_connector_keeps_to_its_database(self):
        """A pool connects to the database it's for, whatever settings say."""
        wrapper = self.make_wrapper()
        connector = wrapper.connection_pool.connector
        wrapper.settings_dict["NAME"] = "another"
        self.assertEqual(
            connector.settings_dict["NAME"], connection.settings_dict["NAME"]
        )

    def test_close_pool(self):
        wrapper = self.make_wrapper()
        self.use(wrapper)
        pool = wrapper.connection_pool
        wrapper.close_pool()
        self.assertEqual(pool.stats().size, 0)
        self.assertIsNot(wrapper.connection_pool, pool)
        self.use(wrapper)

    def test_closed_while_somebody_waits(self):
        """Who waits for a pool that is closed goes on with the next one."""
        holder = self.make_wrapper(max_size=1)
        holder.ensure_connection()
        pool = holder.connection_pool
        results = []

        def wait():
            wrapper = self.make_wrapper(max_size=1)
            results.append(self.select(wrapper))
            wrapper.close()

        thread = threading.Thread(target=wait)
        thread.start()
        while not pool.stats().waiting:
            self.assertIs(thread.is_alive(), True)
        pools.close_pool(pool, timeout=0)
        thread.join(30)
        self.assertEqual(results, [1])
        holder.close()
        self.assertEqual(pool.stats().size, 0)

    def test_closed_by_hand_for_good(self):
        """A pool that its registry still knows isn't replaced."""
        wrapper = self.make_wrapper()
        wrapper.connection_pool.close()
        with self.assertRaises(PoolClosed):
            wrapper.ensure_connection()
        wrapper.close_pool()
        self.use(wrapper)

    def test_close_database(self):
        wrapper = self.make_wrapper()
        self.use(wrapper)
        pool = wrapper.connection_pool
        pools.close_database({**wrapper.settings_dict, "NAME": "another"})
        self.assertEqual(pool.stats().idle, 1)
        pools.close_database(wrapper.settings_dict)
        self.assertEqual(pool.stats().idle, 0)

    def test_returned_to_a_closed_pool(self):
        wrapper = self.make_wrapper()
        wrapper.ensure_connection()
        pool = wrapper.connection_pool
        pools.close_pool(pool, timeout=0)
        self.assertEqual(self.select(wrapper), 1)
        wrapper.close()
        self.assertEqual(pool.stats().size, 0)

    def test_pool_class(self):
        wrapper = self.make_wrapper(pool_class="django.db.pool.NullPool")
        self.assertIsInstance(wrapper.connection_pool, NullPool)
        self.assertIsNot(self.use(wrapper), self.use(wrapper))
        self.assertIsInstance(self.make_wrapper().connection_pool, ConnectionPool)

    def test_invalid_options(self):
        wrapper = self.make_wrapper(max_sise=3)
        message = (
            "DATABASES['default']['POOL']: Unknown option 'max_sise'. Did you mean "
            "'max_size'?"
        )
        with self.assertRaisesMessage(ImproperlyConfigured, message):
            wrapper.ensure_connection()
        del wrapper.settings_dict["POOL"]

    def test_unknown_alias(self):
        with self.assertRaisesMessage(KeyError, "There is no database 'nowhere'"):
            pools["nowhere"]

    def test_secrets(self):
        secret = "not-for-your-eyes"
        wrapper = self.make_wrapper({"PASSWORD": secret})
        pool = wrapper.connection_pool
        for text in (repr(pool), repr(pool.options), repr(pool.stats())):
            self.assertNotIn(secret, text)


class GenericConnectorTests(LendingTestCase):
    """A backend that knows nothing of pools."""

    def make_wrapper(self, changes=None, **options):
        wrapper = super().make_wrapper(changes, **options)
        wrapper.__class__ = self.make_wrapper_class(connector_class=DatabaseConnector)
        return wrapper

    def test_use(self):
        wrapper = self.make_wrapper()
        self.assertIs(type(wrapper.connection_pool.connector), DatabaseConnector)
        self.assertIs(self.use(wrapper), self.use(wrapper))
        self.assertEqual(wrapper.connection_pool.stats().resets, 0)

    def test_transaction_is_rolled_back(self):
        wrapper = self.make_wrapper()
        wrapper.set_autocommit(False)
        self.insert(wrapper, "lost")
        driver_connection = wrapper.connection
        wrapper.close()
        self.insert(wrapper, "kept")
        self.assertIs(wrapper.connection, driver_connection)
        self.assertEqual(self.names(), {"kept"})

    def test_error_casts_doubt(self):
        wrapper = self.make_wrapper()
        with self.assertRaises(DatabaseError):
            self.select(wrapper, "SELECT nothing_like_that")
        wrapper.close()
        self.use(wrapper)
        self.assertEqual(wrapper.connection_pool.stats().resets, 1)

    def test_pinged_when_idle(self):
        wrapper = self.make_wrapper()
        driver_connection = self.use(wrapper)
        pool = wrapper.connection_pool
        with mock.patch.object(pool, "_clock", lambda: time.monotonic() + 2):
            self.assertIs(self.use(wrapper), driver_connection)
            self.assertEqual(pool.stats().checks, 1)
            driver_connection.close()
        if wrapper.vendor == "sqlite":
            # is_usable() is always true.
            wrapper.close_pool()
            return
        with mock.patch.object(pool, "_clock", lambda: time.monotonic() + 4):
            self.assertIsNot(self.use(wrapper), driver_connection)

    def test_reset_always(self):
        wrapper = self.make_wrapper(reset="always")
        self.assertIsNot(self.use(wrapper), self.use(wrapper))


@unittest.skipUnless(connection.vendor == "postgresql", "PostgreSQL tests")
class PostgreSQLTests(LendingTestCase):
    def test_raw_transaction(self):
        wrapper = self.make_wrapper()
        with wrapper.cursor() as cursor:
            cursor.execute("BEGIN")
        self.insert(wrapper, "lost")
        wrapper.close()
        self.insert(wrapper, "kept")
        self.assertEqual(self.names(), {"kept"})

    def test_failed_transaction(self):
        wrapper = self.make_wrapper()
        wrapper.set_autocommit(False)
        with self.assertRaises(ProgrammingError):
            self.select(wrapper, "SELECT nothing_like_that")
        driver_connection = wrapper.connection
        wrapper.close()
        self.assertIs(self.use(wrapper), driver_connection)

    def test_isolation_level(self):
        for level, name in (
            (None, "read committed"),
            (IsolationLevel.SERIALIZABLE, "serializable"),
        ):
            with self.subTest(level=level):
                options = {**connection.settings_dict["OPTIONS"]}
                if level is not None:
                    options["isolation_level"] = level
                wrapper = self.make_wrapper({"OPTIONS": options})
                for _ in range(2):
                    wrapper.set_autocommit(False)
                    self.assertEqual(
                        self.select(wrapper, "SHOW transaction_isolation"), name
                    )
                    wrapper.rollback()
                    wrapper.set_autocommit(True)
                    # Left behind by a careless user.
                    wrapper.connection.isolation_level = IsolationLevel.REPEATABLE_READ
                    wrapper.close()
                self.assertEqual(wrapper.connection_pool.stats().opened, 1)

    def test_assume_role(self):
        with connection.cursor() as cursor:
            cursor.execute("CREATE ROLE db_pool_role NOLOGIN")
            cursor.execute("GRANT db_pool_role TO CURRENT_USER")
        try:
            for reset in ("auto", "always"):
                wrapper = self.make_wrapper(
                    {
                        "OPTIONS": {
                            **connection.settings_dict["OPTIONS"],
                            "assume_role": "db_pool_role",
                        }
                    },
                    reset=reset,
                )
                for _ in range(2):
                    self.assertEqual(
                        self.select(wrapper, "SELECT current_user"), "db_pool_role"
                    )
                    wrapper.close()
                self.assertEqual(wrapper.connection_pool.stats().opened, 1)
                wrapper.close_pool()
        finally:
            with connection.cursor() as cursor:
                cursor.execute("DROP ROLE db_pool_role")

    def test_time_zone(self):
        with override_settings(USE_TZ=True):
            for name in ("Europe/Paris", "Asia/Tokyo"):
                wrapper = self.make_wrapper({"TIME_ZONE": name})
                for _ in range(2):
                    self.assertEqual(self.select(wrapper, "SHOW TimeZone"), name)
                    wrapper.close()

    def test_changed_time_zone(self):
        wrapper = self.make_wrapper(max_size=1)
        idle = self.use(wrapper)
        with override_settings(USE_TZ=True):
            # What update_connections_time_zone() does to known wrappers.
            for name in ("timezone", "timezone_name"):
                wrapper.__dict__.pop(name, None)
            wrapper.ensure_timezone()
            self.assertEqual(self.select(wrapper, "SHOW TimeZone"), "UTC")
            self.assertIsNot(wrapper.connection, idle)

    def test_server_side_binding(self):
        if not is_psycopg3:
            self.skipTest("psycopg2 binds on the client's side.")
        wrapper = self.make_wrapper(
            {
                "OPTIONS": {
                    **connection.settings_dict["OPTIONS"],
                    "server_side_binding": True,
                }
            }
        )
        for _ in range(2):
            self.assertEqual(self.select(wrapper, "SELECT %s::integer", [3]), 3)
            wrapper.close()

    def test_server_side_cursor_left_open(self):
        wrapper = self.make_wrapper()
        cursor = wrapper.chunked_cursor()
        cursor.execute("SELECT generate_series(1, 1000)")
        self.assertEqual(cursor.fetchone()[0], 1)
        cursor.close()
        wrapper.close()
        self.use(wrapper)

    def test_type_handlers_are_registered_once(self):
        """Once for each physical connection, and when there are new types."""
        from django.contrib.postgres import signals

        def forget_types():
            signals.get_hstore_oids.cache_clear()
            signals.get_citext_oids.cache_clear()

        forget_types()
        self.addCleanup(forget_types)
        receiver = signals.register_type_handlers
        connection_created.connect(receiver)
        self.addCleanup(connection_created.disconnect, receiver)
        sql = "SELECT 'a=>1'::hstore"
        early = self.make_wrapper()
        self.use(early)
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1 FROM pg_extension WHERE extname = 'hstore'")
            if cursor.fetchone():
                self.skipTest("Other tests made the extension.")
            cursor.execute("CREATE EXTENSION hstore")
        try:
            forget_types()
            self.assertEqual(self.select(early, sql), {"a": "1"})
            early.close()
            name = "hstore.register_hstore" if is_psycopg3 else "register_hstore"
            with mock.patch("django.contrib.postgres.signals.%s" % name) as register:
                for _ in range(3):
                    wrapper = self.make_wrapper()
                    self.assertEqual(self.select(wrapper, sql), {"a": "1"})
                    wrapper.close()
                register.assert_not_called()
                early.close_pool()
                self.use(early)
                self.assertEqual(register.call_count, 1)
        finally:
            early.close_pool()
            with connection.cursor() as cursor:
                cursor.execute("DROP EXTENSION hstore")

    def test_reset_always_discards_settings(self):
        wrapper = self.make_wrapper(reset="always")
        with wrapper.cursor() as cursor:
            cursor.execute("SET statement_timeout = 12345")
        driver_connection = wrapper.connection
        wrapper.close()
        self.assertEqual(self.select(wrapper, "SHOW statement_timeout"), "0")
        # Not by means of a new one.
        self.assertIs(wrapper.connection, driver_connection)


@unittest.skipUnless(connection.vendor == "mysql", "MySQL tests")
class MySQLTests(LendingTestCase):
    def isolation_level(self, wrapper):
        variable = (
            "tx_isolation" if wrapper.mysql_is_mariadb else ("transaction_isolation")
        )
        return self.select(wrapper, "SELECT @@%s" % variable)

    def test_isolation_level(self):
        for options, name in (
            ({}, "READ-COMMITTED"),
            ({"isolation_level": "serializable"}, "SERIALIZABLE"),
        ):
            with self.subTest(name=name):
                wrapper = self.make_wrapper(
                    {"OPTIONS": {**connection.settings_dict["OPTIONS"], **options}}
                )
                for _ in range(2):
                    self.assertEqual(self.isolation_level(wrapper), name)
                    wrapper.close()
                self.assertEqual(wrapper.connection_pool.stats().opened, 1)

    def test_unread_rows(self):
        from MySQLdb.cursors import SSCursor

        wrapper = self.make_wrapper()
        wrapper.ensure_connection()
        cursor = wrapper.connection.cursor(SSCursor)
        cursor.execute("SELECT 1 UNION SELECT 2")
        self.assertEqual(cursor.fetchone(), (1,))
        wrapper.close()
        # Neither lost nor in the way of the next.
        self.use(wrapper)
        self.assertEqual(wrapper.connection_pool.stats().size, 1)

    def test_unread_result_sets(self):
        wrapper = self.make_wrapper()
        wrapper.ensure_connection()
        cursor = wrapper.connection.cursor()
        cursor.execute("SELECT 1; SELECT 2; SELECT 3")
        self.assertEqual(cursor.fetchone(), (1,))
        wrapper.close()
        self.use(wrapper)
        self.assertEqual(wrapper.connection_pool.stats().size, 1)


@unittest.skipUnless(connection.vendor == "sqlite", "SQLite tests")
class SQLiteTests(LendingTestCase):
    def test_raw_transaction(self):
        wrapper = self.make_wrapper()
        with wrapper.cursor() as cursor:
            cursor.execute("BEGIN IMMEDIATE")
        wrapper.close()
        # A lock that nobody holds anymore.
        self.insert(connection, "kept")
        self.assertEqual(self.names(), {"kept"})

    def test_row_factory(self):
        wrapper = self.make_wrapper()
        wrapper.ensure_connection()
        driver_connection = wrapper.connection
        driver_connection.row_factory = lambda cursor, row: {"changed": row}
        wrapper.close()
        self.assertIs(self.use(wrapper), driver_connection)

    def test_in_memory(self):
        for name in (":memory:", "file:db_pool?mode=memory&cache=shared"):
            with self.subTest(name=name):
                wrapper = self.make_wrapper({"NAME": name})
                self.assertIsNone(wrapper.connection_pool)
                self.assertEqual(self.select(wrapper), 1)
                BaseWrapper = type(wrapper).__mro__[1]
                BaseWrapper.close(wrapper)

    def test_init_command(self):
        wrapper = self.make_wrapper(
            {"OPTIONS": {"init_command": "PRAGMA cache_size=1234"}}
        )
        for _ in range(2):
            self.assertEqual(self.select(wrapper, "PRAGMA cache_size"), 1234)
            wrapper.close()

    def test_transaction_mode(self):
        wrapper = self.make_wrapper({"OPTIONS": {"transaction_mode": "IMMEDIATE"}})
        self.use(wrapper)
        second = self.make_wrapper({"OPTIONS": {"transaction_mode": "IMMEDIATE"}})
        second.ensure_connection()
        self.assertEqual(second.transaction_mode, "IMMEDIATE")
