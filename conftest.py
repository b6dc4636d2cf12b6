"""
Run the tests by pytest: `pytest`, `pytest --ds=test_postgresql`, ...

runtests.py is the reference: it runs the tests as Django's own suite does, in
random order and with the checks that pytest doesn't know.
"""

# Settings modules. They are named like Django's, which pytest takes for tests.
collect_ignore = [
    "tests/test_mysql.py",
    "tests/test_oracle.py",
    "tests/test_postgresql.py",
    "tests/test_sqlite.py",
]


def pytest_report_header():
    import django
    from django.db import connection

    return "django: %s, database: %s" % (
        django.get_version(),
        connection.settings_dict["ENGINE"],
    )
