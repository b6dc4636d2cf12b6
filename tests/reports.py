"""What tests expect a pool to report."""

import contextlib


class ReportsMixin:
    @contextlib.contextmanager
    def assertReportsDeath(self):
        """
        Fail unless it's reported, once, that a connection was found dead.

        That is left to a thread for which those who borrow don't wait.
        """
        with self.assertLogs("django.db.pool", "WARNING") as logs:
            yield
            self.wait_until(lambda: logs.output)
        (output,) = logs.output
        self.assertIn("a connection was found dead", output)
