"""What a pool tells of itself: an immutable snapshot, and histograms."""

from bisect import bisect_left
from collections import namedtuple

# Upper bounds in seconds of the buckets that waiting times are counted in:
# those of OpenTelemetry's db.client.connection.wait_time, extended upwards.
WAIT_BOUNDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0)


class Histogram:
    """
    Count durations in buckets.

    Not thread-safe: the owner of the histogram observes.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds=WAIT_BOUNDS):
        self.bounds = bounds
        # One more bucket than bounds, for what exceeds the last of them.
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, seconds):
        """Count one duration of `seconds`."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds

    def retract(self, seconds):
        """Take back one duration of `seconds` that was observed."""
        self.counts[bisect_left(self.bounds, seconds)] -= 1
        self.total -= seconds

    def snapshot(self):
        """Return the counts as a tuple, one more than there are bounds."""
        return tuple(self.counts)


class PoolStats(
    namedtuple(
        "PoolStats",
        [
            # The present.
            "size",
            "idle",
            "in_use",
            "connecting",
            "waiting",
            "min_size",
            "max_size",
            # Since the pool was made.
            "acquired",
            "reused",
            "opened",
            "closed",
            "timeouts",
            "refused",
            "lost",
            "resets",
            "checks",
            "check_failures",
            "connect_errors",
            "pins",
            "wait_seconds",
            "use_seconds",
            "wait_counts",
        ],
    )
):
    """
    A snapshot of a pool. Counts are integers, durations seconds as floats.

    * size: connections there are: idle, in use, and being opened.
    * idle, in_use, connecting: these three add up to size.
    * waiting: callers that wait for a connection now.
    * min_size, max_size: the limits now in force.
    * acquired: connections lent; reused: those of them lent before.
    * opened, closed: physical connections opened and closed.
    * timeouts, refused: callers that gave up, and that max_waiting refused.
    * lost: connections that came back because their holder was collected or
      its thread ended.
    * resets: connections that had to be cleaned before they could be reused.
    * checks, check_failures: round trips made to see whether a connection
      lives, and connections found dead, with or without a round trip.
    * connect_errors: attempts to connect that failed.
    * pins: how often sessions were touched, so that they had to be kept and
      reset, as a tuple of pairs of a reason and a number.
    * wait_seconds: all the time that callers waited; wait_counts: how many
      waits ended within each of django.db.pool.stats.WAIT_BOUNDS, and beyond.
      A connection that was lent at once counts as no wait at all.
    * use_seconds: all the time that connections now back were in use.

    What one thread does while the snapshot is taken in another may be counted
    in one field and not yet in the other; a quiet pool's figures add up.
    """

    __slots__ = ()
