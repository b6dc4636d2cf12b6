"""
End with connections in several states. Run in a process of its own, with the
names of what to do before.

The output is a list of the server's numbers for the sessions left behind.
"""

import json
import sys
import threading

import scripts

from . import scenarios

kept = []


def leave_idle():
    """Leave three connections idle."""
    from django.db import connection

    barrier = threading.Barrier(3, timeout=30)
    sessions = []

    def use():
        sessions.append(scripts.get_session(connection))
        barrier.wait()
        connection.close()

    threads = [threading.Thread(target=use) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sessions


def leave_in_use():
    """Leave the main thread's wrapper connected, with an open cursor."""
    from django.db import connection

    kept.append(connection.cursor())
    return [scripts.get_session(connection)]


def leave_in_transaction():
    """Leave the main thread within an atomic block."""
    from django.db import transaction

    atomic = transaction.atomic()
    atomic.__enter__()
    kept.append(atomic)
    return leave_in_use()


def leave_unclosed():
    """Leave a wrapper connected that nobody will ever close."""
    from django.db import connection

    wrapper = connection.copy()
    kept.append(wrapper)
    return [scripts.get_session(wrapper)]


def leave_thread_using():
    """Leave a daemon thread that has a connection."""
    from django.db import connection

    sessions = []
    is_used = threading.Event()

    def use():
        sessions.append(scripts.get_session(connection))
        is_used.set()
        threading.Event().wait()

    threading.Thread(target=use, daemon=True).start()
    is_used.wait(30)
    return sessions


def leave_thread_waiting():
    """Leave a daemon thread that waits for a connection."""
    from django.db import connection
    from django.db.pool import pools

    pool = pools["default"]
    pool.resize(0, 1)
    sessions = [scripts.get_session(connection)]

    def wait():
        connection.ensure_connection()

    threading.Thread(target=wait, daemon=True).start()
    while not pool.stats().waiting:
        pass
    return sessions


def leave_connecting():
    """Leave a thread of the pool's that is opening a connection."""
    from django.db import connection
    from django.db.pool import pools

    is_connecting = threading.Event()

    def open():
        is_connecting.set()
        threading.Event().wait()

    pools["default"].connector.open = open
    threading.Thread(target=connection.ensure_connection, daemon=True).start()
    is_connecting.wait(30)
    return []


def leave_driver_connecting():
    """Leave a driver that waits for a server."""
    listener, accepted, _ = scenarios.connect_to_nobody(daemon=True)
    # They stay open, without Python's complaining about it.
    listener.detach()
    accepted.detach()
    return []


if __name__ == "__main__":
    scripts.configure()
    print(
        json.dumps([session for name in sys.argv[1:] for session in globals()[name]()])
    )
