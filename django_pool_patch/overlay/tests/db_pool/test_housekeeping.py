import threading
from math import inf
from time import monotonic
from unittest import mock

from django.db.pool.housekeeping import Housekeeper
from django.test import SimpleTestCase


class ReapedPool:
    """A pool that has nothing to do after it was reaped once."""

    def __init__(self):
        self.was_reaped = threading.Event()

    def reap(self):
        self.was_reaped.set()
        return inf


class HousekeeperTests(SimpleTestCase):
    def test_reaped_when_due(self):
        pool = ReapedPool()
        self.assertIs(Housekeeper().expect(pool, monotonic()), True)
        self.assertIs(pool.was_reaped.wait(10), True)

    def test_sooner_than_expected_before(self):
        housekeeper = Housekeeper()
        pool = ReapedPool()
        housekeeper.expect(pool, monotonic() + 1000)
        housekeeper.expect(pool, monotonic())
        self.assertIs(pool.was_reaped.wait(10), True)

    def test_failing_pool_does_not_stop_others(self):
        class FailingPool(ReapedPool):
            def reap(self):
                super().reap()
                raise ValueError("reaping")

        housekeeper = Housekeeper()
        failing, other = FailingPool(), ReapedPool()
        logged = threading.Event()
        with mock.patch(
            "django.db.pool.housekeeping.logger.exception",
            side_effect=lambda *args: logged.set(),
        ):
            housekeeper.expect(failing, monotonic() + 1000)
            housekeeper.expect(other, monotonic())
            self.assertIs(logged.wait(10), True)
            self.assertIs(other.was_reaped.wait(10), True)

    def test_no_thread_for_a_while(self):
        """A thread that couldn't be started is started at the next try."""
        housekeeper = Housekeeper()
        pool = ReapedPool()
        with mock.patch.object(threading.Thread, "start", side_effect=RuntimeError):
            for _ in range(2):
                self.assertIs(housekeeper.expect(pool, monotonic()), False)
        self.assertIs(housekeeper.expect(pool, monotonic()), True)
        self.assertIs(pool.was_reaped.wait(10), True)
