"""The ways of getting a database connection that are compared."""

import importlib.util
from dataclasses import dataclass, field
from types import MappingProxyType

VENDORS = {"postgresql": "PostgreSQL", "mysql": "MariaDB", "sqlite": "SQLite"}

# What all figures are compared to, where it is among them.
REFERENCE = "session"

# The driver alone, where there is such a thing.
BARE = "bare"
BARE_LABEL = "the driver alone"


@dataclass(frozen=True)
class Sizes:
    """The options of a pool, whatever their names are."""

    min_size: int = 1
    max_size: int = 10
    timeout: float = 30.0


def get_options_pool(sizes):
    return {
        "pool": {
            "min_size": sizes.min_size,
            "max_size": sizes.max_size,
            "timeout": sizes.timeout,
        }
    }


def use_nothing(vendor, sizes):
    return {"CONN_MAX_AGE": 0}


def use_persistent(vendor, sizes):
    return {"CONN_MAX_AGE": None}


def use_options(vendor, sizes):
    return {"OPTIONS": get_options_pool(sizes)}


def use_dj_db_conn_pool(vendor, sizes):
    return {
        "ENGINE": "dj_db_conn_pool.backends.%s" % vendor,
        # SQLAlchemy's pool opens nothing before it's needed.
        "POOL_OPTIONS": {
            "POOL_SIZE": sizes.max_size,
            "MAX_OVERFLOW": 0,
            "TIMEOUT": sizes.timeout,
        },
    }


def use_pg_real_pool(vendor, sizes):
    return {"ENGINE": "django_pg_real_pool", **use_options(vendor, sizes)}


def use_pool(vendor, sizes, **options):
    return {
        "POOL": {
            "min_size": sizes.min_size,
            "max_size": sizes.max_size,
            "timeout": sizes.timeout,
            **options,
        }
    }


def use_pool_by_statement(vendor, sizes):
    return use_pool(vendor, sizes, mode="transaction")


@dataclass(frozen=True)
class Policy:
    """
    One way of getting a connection.

    `settings` returns what it adds to settings.DATABASES, `extra` too.
    `modules` are what has to be installed. Only those with `has_overlay` run
    with django_pool_patch.
    """

    label: str
    settings: object
    extra: MappingProxyType = field(default_factory=lambda: MappingProxyType({}))
    vendors: tuple = tuple(VENDORS)
    modules: tuple = ()
    has_overlay: bool = False
    by_pgbouncer: bool = False

    def get_settings(self, base, vendor, sizes):
        """Return one database's settings, from those without the policy."""
        return {**base, **self.settings(vendor, sizes), **self.extra}

    def get_missing(self):
        """Return the names of the modules that aren't installed."""
        return [name for name in self.modules if importlib.util.find_spec(name) is None]


CHECKED = MappingProxyType({"CONN_HEALTH_CHECKS": True})
UNNAMED_CURSORS = MappingProxyType({"DISABLE_SERVER_SIDE_CURSORS": True})
POSTGRESQL = ("postgresql",)

POLICIES = {
    "none": Policy("no pool", use_nothing),
    "persistent": Policy("CONN_MAX_AGE=None", use_persistent),
    "persistent-checked": Policy(
        "CONN_MAX_AGE=None, CONN_HEALTH_CHECKS", use_persistent, CHECKED
    ),
    "options": Policy(
        'OPTIONS["pool"]', use_options, vendors=POSTGRESQL, modules=("psycopg_pool",)
    ),
    "options-checked": Policy(
        'OPTIONS["pool"], CONN_HEALTH_CHECKS',
        use_options,
        CHECKED,
        vendors=POSTGRESQL,
        modules=("psycopg_pool",),
    ),
    "dj-db-conn-pool": Policy(
        "django-db-connection-pool",
        use_dj_db_conn_pool,
        vendors=("postgresql", "mysql"),
        modules=("dj_db_conn_pool", "sqlalchemy"),
    ),
    "pg-real-pool": Policy(
        "django-pg-real-pool",
        use_pg_real_pool,
        vendors=POSTGRESQL,
        modules=("django_pg_real_pool", "psycopg_pool"),
    ),
    "pgbouncer": Policy(
        "PgBouncer, no pool",
        use_nothing,
        UNNAMED_CURSORS,
        vendors=POSTGRESQL,
        by_pgbouncer=True,
    ),
    "pgbouncer-persistent": Policy(
        "PgBouncer, CONN_MAX_AGE=None",
        use_persistent,
        UNNAMED_CURSORS,
        vendors=POSTGRESQL,
        by_pgbouncer=True,
    ),
    "session": Policy("POOL", use_pool, has_overlay=True),
    "session-checked": Policy(
        "POOL, CONN_HEALTH_CHECKS", use_pool, CHECKED, has_overlay=True
    ),
    "transaction": Policy(
        'POOL, mode="transaction"', use_pool_by_statement, has_overlay=True
    ),
}


def get_label(name):
    return BARE_LABEL if name == BARE else POLICIES[name].label


def select(names, vendor="postgresql"):
    """
    Return the policies of those names that are for a database and installed,
    as a dict, and a list of sentences on those that are left out.
    """
    selected, left_out = {}, []
    for name in names:
        policy = POLICIES[name]
        if vendor not in policy.vendors:
            continue
        if missing := policy.get_missing():
            left_out.append(
                "%s is left out: %s isn't installed."
                % (policy.label, " and ".join(missing))
            )
            continue
        selected[name] = policy
    return selected, left_out
