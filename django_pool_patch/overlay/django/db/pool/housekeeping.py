"""What falls due with time: one thread for all the pools of a process."""

import logging
import os
import threading
from math import inf
from time import monotonic
from weakref import WeakSet

from .workers import start_thread

logger = logging.getLogger("django.db.pool")

# Seconds between two rounds at the least.
SHORTEST_PAUSE = 0.02

# Seconds between two looks at the clock at the most.
LONGEST_PAUSE = 60.0


class Housekeeper:
    """
    Call reap() of pools when it falls due.

    The thread starts when there is something to wait for, and ends when there
    is nothing anymore. It keeps no pool alive.
    """

    def __init__(self):
        self._forget()

    def _forget(self):
        # Guards all that follows. Nothing is called while it's held.
        self._lock = threading.Lock()
        self._pools = WeakSet()
        self._thread = None
        self._wakeup = threading.Event()
        self._next_round = inf

    def expect(self, pool, due):
        """
        Have the pool reaped at `due`, on the monotonic clock, or sooner.

        Return whether there is a thread that will do so.
        """
        if due >= self._next_round and self._thread is not None and pool in self._pools:
            return True
        with self._lock:
            self._pools.add(pool)
            if due < self._next_round:
                self._next_round = due
                self._wakeup.set()
            if self._thread is None and due < inf:
                try:
                    self._thread = start_thread(self._run, "django-pool-housekeeping")
                except RuntimeError:
                    # No threads anymore, as at the interpreter's exit.
                    return False
        return True

    def _run(self):
        last_round = -inf
        while True:
            with self._lock:
                due = self._next_round
                if due == inf:
                    self._thread = None
                    return
            now = monotonic()
            due = max(due, last_round + SHORTEST_PAUSE)
            if due > now:
                if self._wakeup.wait(min(due - now, LONGEST_PAUSE)):
                    self._wakeup.clear()
                # It may be due later, or sooner, by now.
                continue
            self._round()
            last_round = monotonic()

    def _round(self):
        with self._lock:
            self._next_round = inf
            pools = list(self._pools)
        due = inf
        while pools:
            # No name may keep a pool alive during the pause.
            due = min(due, self._reap(pools.pop()))
        with self._lock:
            self._next_round = min(self._next_round, due)

    @staticmethod
    def _reap(pool):
        try:
            return pool.reap()
        except Exception:
            logger.exception("Housekeeping of %r failed.", pool)
            return monotonic() + LONGEST_PAUSE


housekeeper = Housekeeper()

if hasattr(os, "register_at_fork"):
    # Threads don't survive a fork, and locks may be held by those gone.
    os.register_at_fork(after_in_child=housekeeper._forget)
