import contextlib
import http.client
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from unittest import skipUnless

import servers

import scripts
from django.db import connection
from django.db.pool import PoolClosed, pools
from django.db.pool.housekeeping import housekeeper
from django.test import SimpleTestCase, TransactionTestCase

from . import scenarios

# Seconds. Nothing takes that long unless something is wrong.
TIMEOUT = 30

# A script that says goodbye to the servers ends within this time.
EXIT_TIMEOUT = 5


class ServerMixin:
    """What the server knows of sessions, where there is one."""

    def get_living_sessions(self):
        if connection.vendor not in {"mysql", "postgresql"}:
            return set()
        server = servers.shared_server(connection.vendor)
        return set(server.connections(connection.settings_dict["NAME"]))

    def assertSessionsEnd(self, sessions):
        """Servers take note of the end of a session a little later."""
        deadline = time.monotonic() + TIMEOUT
        while alive := self.get_living_sessions().intersection(sessions):
            if time.monotonic() > deadline:
                self.fail("The server still has the sessions %s." % alive)
            time.sleep(0.01)


@skipUnless(hasattr(os, "fork"), "Forking is for POSIX.")
class ForkTests(ServerMixin, scripts.ScriptTestMixin, TransactionTestCase):
    available_apps = ["pool_fork"]

    def setUp(self):
        with connection.cursor() as cursor:
            cursor.execute("CREATE TABLE pool_fork_row (number integer)")
        self.addCleanup(self.drop_table)

    def drop_table(self):
        with connection.cursor() as cursor:
            cursor.execute("DROP TABLE pool_fork_row")
        connection.close()

    def run_scenario(self, name, exit):
        with connection.cursor() as cursor:
            cursor.execute("DELETE FROM pool_fork_row")
        connection.close()
        return self.run_script(
            "pool_fork.scenarios",
            {"default": scripts.get_database(connection, POOL={"timeout": 10.0})},
            args=[name, exit],
        )

    def check_scenario(self, name, rows=0, **expected):
        """
        The child works with sessions of its own, the parent with the one that
        it had, and the child has nothing of the parent's.
        """
        for exit in ["_exit", "return"]:
            with self.subTest(exit=exit):
                report = self.run_scenario(name, exit)
                child = report["child"]
                self.check_child(child, report["before"])
                # An answer to somebody else's question would show here.
                self.assertEqual(report["after"], report["before"])
                self.assertEqual(report.get("rows", 0), rows)
                self.assertEqual({**child, **expected}, child)
                if connection.vendor in {"mysql", "postgresql"}:
                    self.assertGreater(child["sockets_before"], 0)
                self.assertSessionsEnd(
                    [report["before"], child["session"], child["second_session"]]
                )

    def check_child(self, child, parent_session):
        self.assertEqual(child["inherited_sockets"], [])
        self.assertNotEqual(child["session"], parent_session)
        self.assertEqual(child["second_session"], child["session"])
        self.assertEqual(child["size"], 1)
        self.assertEqual(child["opened"], 1)
        self.assertEqual(child["rows"], 0)

    def test_idle(self):
        self.check_scenario("idle")

    def test_in_use(self):
        self.check_scenario("in_use", is_gone=True)

    def test_in_atomic_block(self):
        """
        The child can't use the transaction, which goes on in the parent.
        """
        self.check_scenario(
            "atomic",
            rows=2,
            error="Cannot open a new connection in an atomic block.",
        )

    def test_in_use_by_other_thread(self):
        self.check_scenario("other_thread")

    def test_in_atomic_block_of_other_thread(self):
        self.check_scenario("other_thread_atomic", rows=1)

    def test_while_connecting(self):
        self.check_scenario("connecting")

    def test_while_configuring(self):
        self.check_scenario("configuring")

    @skipUnless(connection.vendor in {"mysql", "postgresql"}, "Needs a server.")
    def test_while_driver_connects(self):
        self.check_scenario("driver_connecting", said_something=False)

    def test_lost(self):
        self.check_scenario("lost")

    def test_while_pool_is_made(self):
        self.check_scenario("half_made")

    def test_other_pool_fails(self):
        self.check_scenario("broken")

    def test_nested(self):
        for exit in ["_exit", "return"]:
            with self.subTest(exit=exit):
                report = self.run_scenario("nested", exit)
                child = report["child"]
                self.check_child(child, report["before"])
                self.check_child(child["grandchild"], child["session"])
                self.assertNotEqual(child["grandchild"]["session"], report["before"])
                self.assertEqual(child["session_afterwards"], child["session"])
                self.assertEqual(report["after"], report["before"])

    @skipUnless(connection.vendor == "sqlite", "SQLite's journal is a file.")
    def test_journal(self):
        """
        A child that ends doesn't roll back what the parent has written to an
        SQLite database, nor delete the journal, which belong to no process.
        """
        for exit in ["_exit", "return"]:
            with self.subTest(exit=exit):
                report = self.run_scenario("spilled", exit)
                self.assertIs(report["has_journal"], True)
                self.assertEqual(report["rows"], 10000)
                self.assertEqual(report["integrity"], "ok")


@skipUnless(hasattr(os, "fork"), "Forking is for POSIX.")
class InProcessTests(ServerMixin, SimpleTestCase):
    """Forks of the process that runs the tests, which is full of threads."""

    databases = {"default"}

    def setUp(self):
        self.connection = connection.copy()
        self.addCleanup(self.connection.close)

    def run_in_child(self, function):
        return scenarios.fork(function, "_exit")

    def get_sessions(self):
        return [scripts.get_session(self.connection), scripts.get_session(connection)]

    def test_in_use(self):
        sessions = self.get_sessions()
        self.addCleanup(connection.close)
        child_sessions = self.run_in_child(self.get_sessions)
        self.assertEqual(set(sessions) & set(child_sessions), set())
        self.assertEqual(self.get_sessions(), sessions)

    def test_copies_and_stats(self):
        """A child counts only what it did itself."""
        pool = self.connection.connection_pool
        scripts.get_session(self.connection)

        def in_child():
            before = pool.stats()
            scripts.get_session(self.connection)
            after = pool.stats()
            return [before.size, before.acquired, after.size, after.in_use]

        self.assertEqual(self.run_in_child(in_child), [0, 0, 1, 1])

    def test_entries_of_the_parent(self):
        """
        What the parent acquired can be given back in the child, to no effect.
        """
        pool = self.connection.connection_pool
        entry = pool.acquire()
        self.addCleanup(pool.release, entry)

        def in_child():
            pool.release(entry)
            stats = pool.stats()
            return [entry.connection is None, stats.idle, stats.size]

        self.assertEqual(self.run_in_child(in_child), [True, 0, 0])
        self.assertIsNotNone(entry.connection)

    @skipUnless(connection.vendor in {"mysql", "postgresql"}, "Needs a socket.")
    def test_descriptor(self):
        """The inherited descriptor is that of the null device."""
        scripts.get_session(self.connection)
        descriptor = self.connection.connection.fileno()

        def in_child():
            is_null = os.path.sameopenfile(descriptor, null.fileno())
            scripts.get_session(self.connection)
            return [is_null, self.connection.connection.fileno() == descriptor]

        with open(os.devnull) as null:
            self.assertEqual(self.run_in_child(in_child), [True, False])
        self.assertIs(scenarios.is_socket(descriptor), True)

    def test_closed(self):
        """A closed pool stays closed in the child."""
        pool = type(self.connection.connection_pool)(
            self.connection.connection_pool.connector, name="closed"
        )
        pool.close()

        def in_child():
            try:
                pool.acquire()
            except PoolClosed as e:
                return str(e)

        self.assertIn("is closed", self.run_in_child(in_child))

    def test_held_locks(self):
        """Locks that other threads hold don't stop the child."""
        pool = self.connection.connection_pool
        are_held = threading.Event()
        may_go_on = threading.Event()

        def hold_locks():
            with pool._lock, pools._lock, housekeeper._lock:
                are_held.set()
                may_go_on.wait(TIMEOUT)

        def in_child():
            wrapper = connection.copy()
            scripts.get_session(wrapper)
            wrapper.close()
            housekeeper.expect(pool, 0.0)
            pool.drain()
            return pool.stats().size

        thread = threading.Thread(target=hold_locks)
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(may_go_on.set)
        are_held.wait(TIMEOUT)
        self.assertEqual(self.run_in_child(in_child), 0)

    def test_housekeeping(self):
        """Housekeeping has a thread of its own in the child."""
        pool = self.connection.connection_pool
        scripts.get_session(self.connection)

        def in_child():
            scripts.get_session(self.connection)
            names = [thread.name for thread in threading.enumerate()]
            return names.count("django-pool-housekeeping")

        self.assertEqual(self.run_in_child(in_child), 1)
        self.assertIsNotNone(pool.stats())

    def test_from_thread(self):
        """A thread forks, and is the main thread of its child."""
        reports = []

        def use():
            wrapper = connection.copy()
            with contextlib.closing(wrapper):
                before = scripts.get_session(wrapper)
                child = self.run_in_child(lambda: scripts.get_session(wrapper))
                reports.append([before, child, scripts.get_session(wrapper)])

        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
        ((before, child, after),) = reports
        self.assertNotEqual(child, before)
        self.assertEqual(after, before)


class MultiprocessingTests(ServerMixin, scripts.ScriptTestMixin, SimpleTestCase):
    databases = {"default"}

    def check_start_method(self, method):
        database = scripts.get_database(connection, POOL={"max_size": 7})
        report = self.run_script(
            "pool_fork.multiprocessing_script", {"default": database}, args=[method]
        )
        self.assertEqual(report["after"], report["before"])
        sessions = [report["before"]]
        for child in report["children"]:
            self.assertEqual(child["again"], child["session"])
            self.assertEqual(child["max_size"], 7)
            sessions.append(child["session"])
        if connection.vendor != "sqlite":
            # One process may have done the work of several.
            pids = {child["pid"] for child in report["children"]}
            self.assertEqual(len(set(sessions)), 1 + len(pids))
        self.assertSessionsEnd(sessions)

    @skipUnless("fork" in multiprocessing.get_all_start_methods(), "No fork.")
    def test_fork(self):
        self.check_start_method("fork")

    @skipUnless("forkserver" in multiprocessing.get_all_start_methods(), "No server.")
    def test_forkserver(self):
        self.check_start_method("forkserver")

    def test_spawn(self):
        self.check_start_method("spawn")


class EndingTests(ServerMixin, scripts.ScriptTestMixin, SimpleTestCase):
    """
    An interpreter that exits leaves nothing behind, complains about nothing,
    and doesn't take long.
    """

    databases = {"default"}

    def check_ending(self, *names):
        database = scripts.get_database(connection, POOL=True)
        started_at = time.monotonic()
        self.run_script("pool_fork.ending", {"default": database})
        startup = time.monotonic() - started_at
        started_at = time.monotonic()
        sessions = self.run_script(
            "pool_fork.ending", {"default": database}, args=names
        )
        self.assertLess(time.monotonic() - started_at - startup, EXIT_TIMEOUT)
        self.assertSessionsEnd(sessions)

    def test_idle(self):
        self.check_ending("leave_idle")

    def test_in_use(self):
        self.check_ending("leave_in_use")

    def test_in_transaction(self):
        self.check_ending("leave_in_transaction")

    def test_unclosed_wrapper(self):
        self.check_ending("leave_unclosed")

    def test_used_by_thread(self):
        self.check_ending("leave_thread_using")

    def test_thread_waits(self):
        self.check_ending("leave_thread_waiting")

    def test_connecting(self):
        self.check_ending("leave_connecting")

    @skipUnless(connection.vendor in {"mysql", "postgresql"}, "Needs a server.")
    def test_driver_connecting(self):
        self.check_ending("leave_driver_connecting")

    def test_everything(self):
        self.check_ending(
            "leave_idle",
            "leave_unclosed",
            "leave_thread_using",
            "leave_in_use",
        )


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=TIMEOUT)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


@skipUnless(hasattr(os, "fork"), "Forking is for POSIX.")
@skipUnless(find_spec("gunicorn"), "Gunicorn isn't installed.")
class GunicornTests(ServerMixin, SimpleTestCase):
    databases = {"default"}
    workers = 3

    def setUp(self):
        directory = tempfile.TemporaryDirectory(prefix="pool-")
        self.addCleanup(directory.cleanup)
        self.path = os.path.join(directory.name, "socket")
        self.log_path = os.path.join(directory.name, "log")
        database = scripts.get_database(connection, POOL={"timeout": 10.0})
        # Gunicorn has warnings of its own.
        env = scripts.get_environment({"default": database}, PYTHONDEVMODE="")
        env.pop("DJANGO_SETTINGS_MODULE", None)
        with open(self.log_path, "w") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "gunicorn",
                    "--preload",
                    "--workers=%d" % self.workers,
                    "--bind=unix:%s" % self.path,
                    "--worker-tmp-dir=%s" % directory.name,
                    *self.get_options(),
                    "pool_fork.wsgi",
                ],
                env=env,
                cwd=directory.name,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.addCleanup(self.stop)

    def get_options(self):
        # Newer releases have a control socket below the home directory.
        output = subprocess.run(
            [sys.executable, "-m", "gunicorn", "--help"],
            stdout=subprocess.PIPE,
            text=True,
        ).stdout
        option = "--no-control-socket"
        return [option] if option in output else []

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(TIMEOUT)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def get_log(self):
        with open(self.log_path) as log:
            return log.read()

    def get(self):
        deadline = time.monotonic() + TIMEOUT
        while True:
            with contextlib.closing(UnixConnection(self.path)) as client:
                try:
                    client.request("GET", "/")
                    response = client.getresponse()
                    body = response.read()
                    break
                except OSError:
                    # It hasn't started yet.
                    if time.monotonic() > deadline or self.process.poll() is not None:
                        self.fail("Gunicorn doesn't answer:\n%s" % self.get_log())
                    time.sleep(0.05)
        self.assertEqual(response.status, 200, self.get_log())
        return json.loads(body)

    def test_preload(self):
        deadline = time.monotonic() + TIMEOUT
        sessions = {}
        while len(sessions) < self.workers:
            # Requests at the same time are spread over the workers.
            with ThreadPoolExecutor(2 * self.workers) as executor:
                futures = [executor.submit(self.get) for _ in range(4 * self.workers)]
                reports = [future.result() for future in futures]
            for report in reports:
                self.assertEqual(report["size"], 1)
                self.assertNotEqual(report["pid"], report["parent_pid"])
                self.assertNotIn(report["session"], report["parent_sessions"])
                # Each worker has one session and keeps it.
                session = sessions.setdefault(report["pid"], report["session"])
                self.assertEqual(report["session"], session)
            if time.monotonic() > deadline:
                self.fail("Only %d workers answered." % len(sessions))
        if connection.vendor != "sqlite":
            self.assertEqual(len(set(sessions.values())), self.workers)
        # The server sees the parent's sessions, too: no child said goodbye in
        # its parent's name.
        alive = self.get_living_sessions()
        if connection.vendor != "sqlite":
            expected = {*sessions.values(), *report["parent_sessions"]}
            self.assertEqual(expected - alive, set())
        self.stop()
        self.assertEqual(self.process.returncode, 0, self.get_log())
        for word in ["Traceback", "Error", "ERROR", "Warning", "WARNING"]:
            self.assertNotIn(word, self.get_log())
        self.assertSessionsEnd({*sessions.values(), *report["parent_sessions"]})
