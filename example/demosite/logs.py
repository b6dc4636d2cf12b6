import logging


class OneLineFormatter(logging.Formatter):
    """Log an exception's type and first line in place of its traceback."""

    def format(self, record):
        line = "%s %s" % (record.levelname, record.getMessage())
        if record.exc_info and record.exc_info[1] is not None:
            exc = record.exc_info[1]
            first_line = str(exc).strip().partition("\n")[0]
            line += " | %s: %s" % (type(exc).__name__, first_line)
        return line
