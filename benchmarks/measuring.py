"""Taking turns, and what to make of the figures."""

import gc
import math
import statistics
import threading
from time import perf_counter


def in_rounds(subjects, rounds, function):
    """
    Return {name: results} of function(subject), for a dict of subjects.

    The subjects take turns, and each round begins with another one, so that
    what else happens on the machine meets all of them alike. There is one
    more round before, to warm up.
    """
    results = {name: [] for name in subjects}
    for number in range(rounds + 1):
        for name in rotated(list(subjects), number):
            result = function(subjects[name])
            if number:
                results[name].append(result)
    return results


def rotated(items, number):
    """Return a list that begins with another item for each number."""
    number %= max(len(items), 1)
    return items[number:] + items[:number]


def summarize(figures, reference):
    """
    Return {name: summary} of a dict of lists, with one figure for each round.

    Ratios are taken within each round, for what slows one down most likely
    slows down its neighbours in the round.
    """
    return {
        name: {
            "median": statistics.median(own),
            "lowest": min(own),
            "highest": max(own),
            "ratio": ratio_to(own, figures.get(reference)),
            "rounds": own,
        }
        for name, own in figures.items()
    }


def ratio_to(own, others):
    """Return the median of the ratios of two lists, or None."""
    ratios = [mine / theirs for mine, theirs in zip(own, others or []) if theirs]
    return statistics.median(ratios) if ratios else None


def percentile(ordered, percent):
    """Return the nearest-rank percentile of a sorted list, or None."""
    if not ordered:
        return None
    return ordered[max(math.ceil(len(ordered) * percent / 100), 1) - 1]


class Runner:
    """
    Run a function in threads that start together, for some seconds.

    The function gets the time on perf_counter() at which it has to end.
    """

    def __init__(self, function, threads, seconds=math.inf):
        self.function = function
        self.seconds = seconds
        self.barrier = threading.Barrier(threads, action=self.start)
        self.results = []
        self.error = None
        self.threads = [
            threading.Thread(target=self.run, daemon=True) for _ in range(threads)
        ]

    def start(self):
        self.started_at = perf_counter()
        self.deadline = self.started_at + self.seconds

    def run(self):
        try:
            self.barrier.wait()
            self.results.append(self.function(self.deadline))
        except BaseException as e:
            # The first tells the cause, the others of the barrier.
            self.error = self.error or e
            self.barrier.abort()

    def __call__(self):
        """Return what the function returned, and the seconds that it took."""
        for thread in self.threads:
            thread.start()
        for thread in self.threads:
            thread.join()
        if self.error is not None:
            raise self.error
        return self.results, perf_counter() - self.started_at


def time_operation(operation, seconds, clock=perf_counter):
    """
    Return the microseconds that a call takes, by calling it for a while.

    `clock` returns seconds: those that pass, or thread_time() for those that
    the thread occupies a processor for.
    """
    for _ in range(3):
        begun_at = clock()
        operation()
        is_slow = clock() - begun_at > 0.001
    gc.collect()
    calls = 0
    # Between two looks at the clock.
    chunk = 1 if is_slow else 10
    times = range(chunk)
    started_at = now = clock()
    deadline = started_at + seconds
    while now < deadline:
        for _ in times:
            operation()
        calls += chunk
        now = clock()
    return (now - started_at) * 1e6 / calls
