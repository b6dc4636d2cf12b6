"""Threads that do what blocks, so that no caller has to."""

import os
import sys
import threading
from contextvars import Context
from queue import SimpleQueue

# Threads that stay for what is to be opened next: starting a thread takes
# about as long as a local server needs to answer.
KEPT = 1


def start_thread(target, name):
    """
    Start a daemon thread, and return it.

    Raise RuntimeError if there can't be another one.
    """
    options = {}
    if sys.version_info >= (3, 14):
        # It may be given a copy of the starter's context, and would keep alive
        # what a request, or a task, has in there.
        options["context"] = Context()
    thread = threading.Thread(target=target, name=name, daemon=True, **options)
    thread.start()
    return thread


class Workers:
    """Run callables, each in a thread in which nothing else runs meanwhile."""

    def __init__(self, kept=KEPT):
        self._kept = kept
        self._forget()

    def _forget(self):
        self._lock = threading.Lock()
        # Threads that wait for a job, and for which none is on its way yet.
        # Locked.
        self._free = 0
        self._jobs = SimpleQueue()

    def run(self, job):
        """
        Have `job` called soon. It must not raise.

        Raise RuntimeError if there can't be another thread.
        """
        with self._lock:
            is_one_free = self._free > 0
            if is_one_free:
                self._free -= 1
        if not is_one_free:
            start_thread(self._work, "django-pool-worker")
        # Not as an argument of the thread's, which it would keep alive.
        self._jobs.put(job)

    def _work(self):
        while True:
            job = self._jobs.get()
            job()
            # Nothing may be kept alive while waiting.
            del job
            with self._lock:
                if self._free >= self._kept:
                    return
                self._free += 1


workers = Workers()

if hasattr(os, "register_at_fork"):
    # Threads don't survive a fork, and locks may be held by those gone.
    os.register_at_fork(after_in_child=workers._forget)
