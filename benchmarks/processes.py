"""Start processes, and end them whatever happens."""

import atexit
import contextlib
import os
import signal
import subprocess
import sys

# Seconds that a process gets for ending by itself.
GRACE = 8

# Runs beside everything else, and ends what is left once the process that
# started it is gone, for whatever reason. It is told of process groups that
# began (+) and ended (-), and reads to the end of its input, which is closed
# when the other end is.
GUARD = """
import os, signal, sys, time
for name in ("SIGHUP", "SIGINT", "SIGTERM"):
    signal.signal(getattr(signal, name), signal.SIG_IGN)
groups = set()
for line in sys.stdin:
    (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
for number in (signal.SIGTERM, signal.SIGKILL):
    for group in groups:
        try:
            os.killpg(group, number)
        except OSError:
            pass
    time.sleep(2 if groups else 0)
"""

_guard = None

# By their pids, those that have not been ended.
_processes = {}

# Whether a process is being started, and whether an interrupt waits for that.
_is_starting = False
_is_interrupted = False


def _tell_guard(message):
    global _guard
    if _guard is None:
        _guard = subprocess.Popen(
            [sys.executable, "-ISuc", GUARD],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
    with contextlib.suppress(OSError):
        _guard.stdin.write(message + "\n")
        _guard.stdin.flush()


def start(command, **kwargs):
    """Start a process, as the leader of a group of its own."""
    global _is_starting
    # An interrupt mustn't come between a process and the note of it.
    _is_starting = True
    try:
        process = subprocess.Popen(
            command,
            # Ctrl+C is for the process that starts the others, and ends them.
            start_new_session=True,
            **kwargs,
        )
        _processes[process.pid] = process
        _tell_guard("+%d" % process.pid)
    finally:
        _is_starting = False
    if _is_interrupted:
        raise KeyboardInterrupt
    return process


def end(process, grace=GRACE):
    """End a process that start() returned, and all others of its group."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace)
    # Workers that outlive their parent would go on using the database.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    _processes.pop(process.pid, None)
    _tell_guard("-%d" % process.pid)
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


@atexit.register
def end_all():
    """End what nobody has ended."""
    for process in list(_processes.values()):
        end(process)


@contextlib.contextmanager
def running(command, **kwargs):
    """Run a process for as long as the block takes."""
    process = start(command, **kwargs)
    try:
        yield process
    finally:
        end(process)


def end_by_signals():
    """Have this process clean up when it's terminated, as by Ctrl+C."""
    handled = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def interrupt(number, frame):
        global _is_interrupted
        # Once is enough: another one must not interrupt the cleaning up.
        for number in handled:
            signal.signal(number, signal.SIG_IGN)
        _is_interrupted = True
        if not _is_starting:
            raise KeyboardInterrupt

    for number in handled:
        signal.signal(number, interrupt)
