"""Keeping processes on one core, lest it matters where the others are."""

import contextlib
import os
from pathlib import Path

import servers


def can_pin():
    """Return whether the cores of other processes can be chosen."""
    return hasattr(os, "sched_setaffinity") and Path("/proc/self/task").is_dir()


@contextlib.contextmanager
def on_one_core(pid=None):
    """
    Keep a process, all that descend from it, and their threads on one core.
    Yield the core. Without a pid nothing is kept there.
    """
    cores = os.sched_getaffinity(0)
    core = max(cores)
    pids = [] if pid is None else [pid, *servers.find_descendants(pid)]
    keep(pids, {core})
    try:
        yield core
    finally:
        keep(pids, cores)


def keep(pids, cores):
    for pid in pids:
        # A process, or a thread, may end meanwhile.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for thread in os.listdir("/proc/%d/task" % pid):
                os.sched_setaffinity(int(thread), cores)
