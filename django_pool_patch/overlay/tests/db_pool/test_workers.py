import threading
from unittest import mock

from django.db.pool.workers import Workers
from django.test import SimpleTestCase


class WorkersTests(SimpleTestCase):
    def setUp(self):
        self.workers = Workers()

    def run_job(self):
        """Return the thread that a job ran in, once it's free again."""
        done = threading.Event()
        threads = []

        def job():
            threads.append(threading.current_thread())
            done.set()

        self.workers.run(job)
        self.assertIs(done.wait(10), True)
        return threads[0]

    def wait_until_free(self, number):
        deadline = threading.Event()
        for _ in range(1000):
            if self.workers._free == number:
                return
            deadline.wait(0.01)
        self.fail("%d threads are free." % self.workers._free)

    def test_thread_is_kept(self):
        first = self.run_job()
        self.wait_until_free(1)
        self.assertIs(self.run_job(), first)
        self.assertIs(first.daemon, True)

    def test_jobs_run_at_the_same_time(self):
        barrier = threading.Barrier(4, timeout=10)
        for _ in range(3):
            self.workers.run(barrier.wait)
        barrier.wait()
        # No more than one of the threads is kept.
        self.wait_until_free(1)

    def test_busy_thread_gets_no_job(self):
        release = threading.Event()
        self.addCleanup(release.set)
        self.run_job()
        self.wait_until_free(1)
        self.workers.run(release.wait)
        self.assertIsNot(self.run_job(), None)

    def test_no_threads(self):
        with mock.patch.object(threading.Thread, "start", side_effect=RuntimeError):
            with self.assertRaises(RuntimeError):
                self.workers.run(lambda: None)

    def test_job_is_not_kept_alive(self):
        finalized = threading.Event()

        class Job:
            def __call__(self):
                pass

            def __del__(self):
                finalized.set()

        self.workers.run(Job())
        self.assertIs(finalized.wait(10), True)
