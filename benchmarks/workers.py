"""
Processes that do as they are told, over a pipe.

What is compared runs in a process of its own, for Django's settings, and what
the overlay changes in Django, are global. The processes live as long as a part
of the benchmarks, so that they can take turns in each round.
"""

import contextlib
import json
import os
import select
import sys
import tempfile
from pathlib import Path
from time import monotonic

import processes

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent

# Seconds.
TIMEOUT = 120


class WorkerError(Exception):
    """A worker couldn't do what it was told."""


class Worker:
    """
    A process that calls functions.

    call("module.function", ...) does so with keyword arguments, and returns
    the result, both as JSON. begin() and finish() are its two halves, for
    having several workers do something at the same time.
    """

    def __init__(self, name):
        self.name = name
        self.errors = tempfile.TemporaryFile()
        self.buffer = b""
        self.process = processes.start(
            [sys.executable, __file__],
            stdin=-1,
            stdout=-1,
            stderr=self.errors,
        )

    def __enter__(self):
        return self

    def __exit__(self, exc_type, exc_value, traceback):
        self.close()

    def close(self):
        processes.end(self.process)
        self.errors.close()

    def begin(self, function, **kwargs):
        message = json.dumps({"function": function, "kwargs": kwargs})
        try:
            self.process.stdin.write(message.encode() + b"\n")
            self.process.stdin.flush()
        except OSError:
            raise self.get_error("ended") from None

    def finish(self, timeout=TIMEOUT):
        deadline = monotonic() + timeout
        stdout = self.process.stdout.fileno()
        while b"\n" not in self.buffer:
            remaining = deadline - monotonic()
            if remaining <= 0 or not select.select([stdout], [], [], remaining)[0]:
                raise self.get_error("didn't answer within %d seconds" % timeout)
            if not (data := os.read(stdout, 1 << 16)):
                raise self.get_error("ended")
            self.buffer += data
        line, _, self.buffer = self.buffer.partition(b"\n")
        answer = json.loads(line)
        if "error" in answer:
            raise self.get_error(answer["error"])
        return answer["result"]

    def call(self, function, timeout=TIMEOUT, **kwargs):
        self.begin(function, **kwargs)
        return self.finish(timeout)

    def get_error(self, problem):
        self.errors.seek(0)
        log = self.errors.read().decode(errors="replace").strip()
        print("\n".join(log.splitlines()[-25:]), file=sys.stderr)
        return WorkerError("%s: %s" % (self.name, problem))


@contextlib.contextmanager
def start_workers(setups):
    """
    Start a worker for each item of a dict, and call a function in each.

    The values are the arguments of call(). Yield a dict of the workers, and
    one of the messages of those that couldn't be set up.
    """
    with contextlib.ExitStack() as stack:
        workers = {name: stack.enter_context(Worker(name)) for name in setups}
        problems = {}
        for name, setup in setups.items():
            workers[name].begin(**setup)
        for name in setups:
            try:
                workers[name].finish()
            except WorkerError as e:
                problems[name] = str(e)
                workers.pop(name).close()
        yield workers, problems


def main():
    """Be a worker."""
    import importlib
    import traceback

    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    answers = os.fdopen(os.dup(1), "w")
    # Whatever is printed mustn't get between the answers.
    os.dup2(2, 1)
    for line in sys.stdin:
        message = json.loads(line)
        module, _, name = message["function"].rpartition(".")
        try:
            function = getattr(importlib.import_module(module), name)
            answer = {"result": function(**message["kwargs"])}
        except Exception as e:
            traceback.print_exc()
            answer = {"error": "%s: %s" % (type(e).__name__, str(e).partition("\n")[0])}
        print(json.dumps(answer), file=answers, flush=True)
    # What is still in use, by threads that hang say, isn't waited for.
    os._exit(0)


if __name__ == "__main__":
    main()
