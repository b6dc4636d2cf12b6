"""
Fork while the pool is in some state. Run in a process of its own, with the
name of the scenario and how the child ends: by "return" or by "_exit".

The output is one JSON object: what the child reports, and the parent.
"""

import json
import os
import signal
import socket
import stat
import sys
import threading

import scripts

# Seconds after which a child that hangs is killed.
CHILD_TIMEOUT = 30


class ChildError(Exception):
    pass


def fork(in_child, exit):
    """
    Fork. In the child, report what in_child() returns, and end; in the parent,
    return that report when the child is gone.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(CHILD_TIMEOUT)
        os.close(reader)
        with open(writer, "w") as pipe:
            json.dump(in_child(), pipe)
        if exit == "_exit":
            os._exit(0)
        # The interpreter shuts down: finalizers and atexit handlers run.
        sys.exit(0)
    os.close(writer)
    with open(reader) as pipe:
        report = pipe.read()
    _, status = os.waitpid(pid, 0)
    if os.waitstatus_to_exitcode(status) != 0:
        raise ChildError("The child ended with %d." % os.waitstatus_to_exitcode(status))
    return json.loads(report)


def is_socket(descriptor):
    try:
        return stat.S_ISSOCK(os.fstat(descriptor).st_mode)
    except OSError:
        return False


def get_descriptors():
    """Return the descriptors of this process that are sockets."""
    return {number for number in range(256) if is_socket(number)}


def connect_to_nobody(**kwargs):
    """
    Have a thread connect to a server that accepts, and then says nothing.

    Return when the driver is waiting for it: the listening socket, that of the
    connection, and the thread.
    """
    from django.db import OperationalError, connections

    listener = socket.create_server(("127.0.0.1", 0))
    connections.settings["nobody"] = {
        **connections.settings["default"],
        "HOST": "127.0.0.1",
        "PORT": str(listener.getsockname()[1]),
    }

    def connect():
        try:
            connections["nobody"].ensure_connection()
        except OperationalError:
            pass

    thread = threading.Thread(target=connect, **kwargs)
    thread.start()
    accepted, _ = listener.accept()
    if connections["default"].vendor == "postgresql":
        # In MySQL's protocol the server speaks first.
        accepted.recv(1000)
    return listener, accepted, thread


class Scenario:
    """
    A wrapper is used in prepare(), the process forks in the middle of that,
    and goes on in both processes.
    """

    def __init__(self, exit):
        from django.db import connection
        from django.db.pool import pools

        self.exit = exit
        self.connection = connection
        self.pool = pools["default"]

    def query(self):
        return scripts.get_session(self.connection)

    def count_rows(self):
        with self.connection.cursor() as cursor:
            cursor.execute("SELECT COUNT(*) FROM pool_fork_row")
            return cursor.fetchone()[0]

    def insert_row(self):
        with self.connection.cursor() as cursor:
            cursor.execute("INSERT INTO pool_fork_row (number) VALUES (1)")

    def in_child(self):
        inherited = sorted(get_descriptors() & self.sockets)
        session = self.query()
        # Twice, for the second takes what the first gave back.
        self.connection.close()
        second_session = self.query()
        stats = self.pool.stats()
        return {
            "inherited_sockets": inherited,
            "session": session,
            "second_session": second_session,
            "rows": self.count_rows(),
            "size": stats.size,
            "opened": stats.opened,
        }

    def fork(self):
        self.sockets = get_descriptors()
        child = fork(self.in_child, self.exit)
        child["sockets_before"] = len(self.sockets)
        return child

    def run(self):
        """Return {"child": the child's report, "before": …, "after": …}."""
        raise NotImplementedError


class Idle(Scenario):
    def run(self):
        before = self.query()
        self.connection.close()
        child = self.fork()
        return {"before": before, "child": child, "after": self.query()}


class InUse(Scenario):
    def in_child(self):
        # Nobody can use the parent's connection by mistake.
        is_gone = self.connection.connection is None
        return {"is_gone": is_gone, **super().in_child()}

    def run(self):
        before = self.query()
        child = self.fork()
        return {"before": before, "child": child, "after": self.query()}


class Atomic(Scenario):
    """The child leaves the block by an exception, and starts afresh."""

    def in_child(self):
        from django.db import ProgrammingError

        # The child can't go on with the transaction, which is the parent's.
        try:
            self.query()
        except ProgrammingError as e:
            return {"error": str(e)}

    def run(self):
        from django.db import transaction

        reader, writer = os.pipe()
        try:
            with transaction.atomic():
                self.insert_row()
                before = self.query()
                self.sockets = get_descriptors()
                pid = os.fork()
                if pid == 0:
                    signal.alarm(CHILD_TIMEOUT)
                    report = self.in_child()
                    raise ChildError()
                os.close(writer)
                with open(reader) as pipe:
                    child = json.load(pipe)
                _, status = os.waitpid(pid, 0)
                if status:
                    raise RuntimeError("The child ended with %d." % status)
                child["sockets_before"] = len(self.sockets)
                has_journal = os.path.exists(
                    "%s-journal" % self.connection.settings_dict["NAME"]
                )
                self.insert_row()
        except ChildError:
            report.update(super().in_child())
            with open(writer, "w") as pipe:
                json.dump(report, pipe)
            if self.exit == "_exit":
                os._exit(0)
            sys.exit(0)
        return {
            "before": before,
            "child": child,
            "after": self.query(),
            "rows": self.count_rows(),
            "has_journal": has_journal,
        }


class OtherThread(Scenario):
    """Another thread has a connection while this one forks."""

    def run(self):
        is_used = threading.Event()
        may_go_on = threading.Event()
        sessions = []

        def use():
            from django.db import connection

            try:
                sessions.append(scripts.get_session(connection))
                is_used.set()
                may_go_on.wait(CHILD_TIMEOUT)
                sessions.append(scripts.get_session(connection))
            finally:
                is_used.set()
                connection.close()

        thread = threading.Thread(target=use)
        thread.start()
        is_used.wait(CHILD_TIMEOUT)
        child = self.fork()
        may_go_on.set()
        thread.join()
        before, after = sessions
        return {"before": before, "child": child, "after": after}


class OtherThreadAtomic(Scenario):
    """Another thread has a transaction open while this one forks."""

    def run(self):
        is_used = threading.Event()
        may_go_on = threading.Event()
        sessions = []

        def use():
            from django.db import connection, transaction

            try:
                with transaction.atomic():
                    self.insert_row()
                    sessions.append(scripts.get_session(connection))
                    is_used.set()
                    may_go_on.wait(CHILD_TIMEOUT)
                sessions.append(scripts.get_session(connection))
            finally:
                is_used.set()
                connection.close()

        thread = threading.Thread(target=use)
        thread.start()
        is_used.wait(CHILD_TIMEOUT)
        child = self.fork()
        may_go_on.set()
        thread.join()
        before, after = sessions
        return {
            "before": before,
            "child": child,
            "after": after,
            "rows": self.count_rows(),
        }


class Connecting(Scenario):
    """A thread is opening a connection while this one forks."""

    # The connector's method after which the thread is stopped.
    method = "open"

    def run(self):
        connector = self.pool.connector
        method = getattr(connector, self.method)
        parent = os.getpid()
        is_reached = threading.Event()
        may_go_on = threading.Event()
        sessions = []

        def stop_after(*args):
            result = method(*args)
            if os.getpid() == parent:
                is_reached.set()
                may_go_on.wait(CHILD_TIMEOUT)
            return result

        def use():
            from django.db import connection

            sessions.append(scripts.get_session(connection))
            connection.close()

        setattr(connector, self.method, stop_after)
        thread = threading.Thread(target=use)
        thread.start()
        is_reached.wait(CHILD_TIMEOUT)
        child = self.fork()
        may_go_on.set()
        thread.join()
        (session,) = sessions
        return {"before": session, "child": child, "after": self.query()}


class Configuring(Connecting):
    method = "configure"


class DriverConnecting(Scenario):
    """A driver is waiting for a server while another thread forks."""

    def fork(self):
        report = super().fork()
        # The driver has its socket to itself still. It stays open, but nobody
        # in the child knows of it.
        report["inherited_sockets"] = []
        return report

    def in_child(self):
        report = super().in_child()
        for each in self.server_sockets:
            each.close()
        return report

    def run(self):
        before = self.query()
        listener, accepted, thread = connect_to_nobody()
        self.server_sockets = [listener, accepted]
        child = self.fork()
        accepted.setblocking(False)
        try:
            received = accepted.recv(1000)
        except BlockingIOError:
            received = None
        child["said_something"] = received is not None
        listener.close()
        accepted.close()
        thread.join()
        return {"before": before, "child": child, "after": self.query()}


class Lost(Scenario):
    """A connection was dropped, and nobody has noticed yet."""

    def run(self):
        import gc

        gc.disable()
        wrapper = self.connection.copy()
        before = scripts.get_session(wrapper)
        del wrapper
        gc.collect()
        child = self.fork()
        # What was lost comes back.
        self.pool.reap()
        return {"before": before, "child": child, "after": self.query()}


class HalfMade(Idle):
    """Another thread is making a pool."""

    def run(self):
        from django.db.pool import BasePool, ConnectionPool

        pool = ConnectionPool.__new__(ConnectionPool)
        BasePool.__init__(pool, self.pool.connector)
        return super().run()


class Broken(Idle):
    """There is another pool, which doesn't survive a fork."""

    def run(self):
        import logging

        from django.db.pool import ConnectionPool

        class BrokenPool(ConnectionPool):
            def after_fork_in_child(self):
                raise ValueError("It's broken.")

        logging.getLogger("django.db.pool").addHandler(logging.NullHandler())
        logging.getLogger("django.db.pool").propagate = False
        pool = BrokenPool(self.pool.connector)
        report = super().run()
        del pool
        return report


class Spilled(Scenario):
    """
    There is more in SQLite's transaction than memory is used for, so that the
    file has been written to. The child just ends.
    """

    def in_child(self):
        return {}

    def run(self):
        from django.db import transaction

        name = self.connection.settings_dict["NAME"]
        with self.connection.cursor() as cursor:
            cursor.execute("PRAGMA cache_size = 1")
        with transaction.atomic():
            for _ in range(10):
                with self.connection.cursor() as cursor:
                    cursor.executemany(
                        "INSERT INTO pool_fork_row (number) VALUES (%s)",
                        [(number,) for number in range(1000)],
                    )
            child = self.fork()
            has_journal = os.path.exists("%s-journal" % name)
        with self.connection.cursor() as cursor:
            cursor.execute("PRAGMA integrity_check")
            result = cursor.fetchone()[0]
        return {
            "child": child,
            "rows": self.count_rows(),
            "has_journal": has_journal,
            "integrity": result,
        }


class Nested(Scenario):
    """The child forks too."""

    def in_child(self):
        report = super().in_child()
        self.sockets = get_descriptors()
        grandchild = fork(super().in_child, self.exit)
        report["grandchild"] = grandchild
        report["session_afterwards"] = self.query()
        return report

    def run(self):
        before = self.query()
        child = self.fork()
        return {"before": before, "child": child, "after": self.query()}


SCENARIOS = {
    "idle": Idle,
    "in_use": InUse,
    "atomic": Atomic,
    "other_thread": OtherThread,
    "other_thread_atomic": OtherThreadAtomic,
    "connecting": Connecting,
    "configuring": Configuring,
    "driver_connecting": DriverConnecting,
    "lost": Lost,
    "nested": Nested,
    "spilled": Spilled,
    "half_made": HalfMade,
    "broken": Broken,
}


def main():
    scripts.configure()
    name, exit = sys.argv[1:]
    report = SCENARIOS[name](exit).run()
    print(json.dumps(report))


if __name__ == "__main__":
    main()
