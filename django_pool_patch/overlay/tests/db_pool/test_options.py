from django.core.exceptions import ImproperlyConfigured
from django.db.pool import ConnectionPool, PoolOptions
from django.db.pool.options import REPLACED_KEYS
from django.test import SimpleTestCase

DEFAULTS = {
    "min_size": 0,
    "max_size": 10,
    "timeout": 30.0,
    "max_waiting": 0,
    "max_lifetime": 3600.0,
    "max_idle": 600.0,
    "mode": "session",
    "check": "auto",
    "reset": "auto",
    "leak_threshold": None,
    "reconnect_timeout": 300.0,
    "pool_class": None,
}


def check(connection):
    return True


class PoolOptionsTests(SimpleTestCase):
    def assertProblem(self, msg, **options):
        with self.assertRaisesMessage(ImproperlyConfigured, msg):
            PoolOptions(**options)

    def get_values(self, options):
        return {name: getattr(options, name) for name in PoolOptions.fields}

    def test_defaults(self):
        self.assertEqual(self.get_values(PoolOptions()), DEFAULTS)

    def test_values(self):
        values = {
            "min_size": 2,
            "max_size": 5,
            "timeout": 1,
            "max_waiting": 7,
            "max_lifetime": 60,
            "max_idle": 0.5,
            "mode": "session",
            "check": "ping",
            "reset": "always",
            "leak_threshold": 10,
            "reconnect_timeout": 3.5,
            "pool_class": "django.db.pool.NullPool",
        }
        self.assertEqual(self.get_values(PoolOptions(**values)), values)

    def test_no_limits(self):
        for name in ("max_size", "timeout", "max_lifetime", "max_idle"):
            with self.subTest(name=name):
                self.assertIsNone(getattr(PoolOptions(**{name: None}), name))

    def test_limits_of_zero(self):
        options = PoolOptions(min_size=0, timeout=0, max_waiting=0)
        self.assertEqual(options.timeout, 0)

    def test_callables(self):
        options = PoolOptions(check=check, reset="path.to.reset")
        self.assertIs(options.check, check)
        self.assertEqual(options.reset, "path.to.reset")

    def test_pool_class(self):
        self.assertIs(PoolOptions(pool_class=ConnectionPool).pool_class, ConnectionPool)

    def test_no_other_attributes(self):
        with self.assertRaises(AttributeError):
            PoolOptions().max_sice = 3

    def test_repr(self):
        self.assertEqual(
            repr(PoolOptions(max_size=3)),
            "<PoolOptions min_size=0 max_size=3 timeout=30.0 max_waiting=0 "
            "max_lifetime=3600.0 max_idle=600.0 mode='session' check='auto' "
            "reset='auto' leak_threshold=None reconnect_timeout=300.0 "
            "pool_class=None>",
        )

    # What is wrong.

    def test_not_an_integer(self):
        for name, minimum in [("min_size", 0), ("max_waiting", 0)]:
            for value in ("4", 4.0, True, None, [4], -1):
                with self.subTest(name=name, value=value):
                    self.assertProblem(
                        "Invalid pool options: '%s' must be an integer of at least "
                        "%d, not %r." % (name, minimum, value),
                        **{name: value},
                    )

    def test_max_size(self):
        for value in ("4", 4.0, False, 0, -1):
            with self.subTest(value=value):
                self.assertProblem(
                    "'max_size' must be an integer of at least 1, or None, not %r."
                    % value,
                    max_size=value,
                )

    def test_timeout(self):
        for value in ("30", True, -0.1):
            with self.subTest(value=value):
                self.assertProblem(
                    "'timeout' must be a number of seconds of at least 0, or None, "
                    "not %r." % value,
                    timeout=value,
                )

    def test_not_a_duration(self):
        for name in ("max_lifetime", "max_idle", "leak_threshold"):
            for value in (0, -1, "60", False):
                with self.subTest(name=name, value=value):
                    self.assertProblem(
                        "'%s' must be a number of seconds above 0, or None, not %r."
                        % (name, value),
                        **{name: value},
                    )

    def test_reconnect_timeout(self):
        for value in (0, "60", None):
            with self.subTest(value=value):
                self.assertProblem(
                    "'reconnect_timeout' must be a number of seconds above 0, not %r."
                    % value,
                    reconnect_timeout=value,
                )

    def test_not_a_choice(self):
        msg = (
            "'check' must be one of 'auto', 'ping', 'off', or a dotted path to a "
            "callable, not 'always'."
        )
        self.assertProblem(msg, check="always")
        msg = (
            "'reset' must be one of 'auto', 'always', 'rollback', or a dotted path to "
            "a callable, not 3."
        )
        self.assertProblem(msg, reset=3)

    def test_mode(self):
        for value in ("statement", None, "django.db"):
            with self.subTest(value=value):
                self.assertProblem("'mode' must be one of 'session'", mode=value)

    def test_not_a_pool_class(self):
        for value in ("NullPool", "..", 3):
            with self.subTest(value=value):
                self.assertProblem(
                    "'pool_class' must be a dotted path to a subclass of "
                    "django.db.pool.BasePool, not %r." % value,
                    pool_class=value,
                )

    def test_contradictory_sizes(self):
        msg = (
            "'min_size' (4) must not exceed 'max_size' (3). Raise 'max_size' or lower "
            "'min_size'."
        )
        self.assertProblem(msg, min_size=4, max_size=3)
        # The default of the one may contradict the other too.
        self.assertProblem("'min_size' (11) must not exceed 'max_size'", min_size=11)
        self.assertEqual(PoolOptions(min_size=11, max_size=None).min_size, 11)

    def test_misspelled_key(self):
        self.assertProblem(
            "Unknown option 'maxsize'. Did you mean 'max_size'?", maxsize=3
        )

    def test_unknown_key(self):
        self.assertProblem(
            "Unknown option 'zzz'. Remove it, or use one of: min_size, max_size, "
            "timeout, max_waiting, max_lifetime, max_idle, mode, check, reset, "
            "leak_threshold, reconnect_timeout, pool_class.",
            zzz=3,
        )

    def test_all_problems_at_once(self):
        problems = PoolOptions.problems({"min_size": -1, "timeout": "x", "tiemout": 3})
        self.assertEqual(
            problems,
            [
                "'min_size' must be an integer of at least 0, not -1.",
                "'timeout' must be a number of seconds of at least 0, or None, not "
                "'x'.",
                "Unknown option 'tiemout'. Did you mean 'timeout'?",
            ],
        )

    # psycopg_pool.

    def test_options_of_psycopg_pool(self):
        # Those that mean the same there.
        options = {
            "min_size": 4,
            "max_size": 8,
            "timeout": 30.0,
            "max_waiting": 10,
            "max_lifetime": 1800.0,
            "max_idle": 300.0,
            "reconnect_timeout": 60.0,
            "check": check,
            "reset": check,
        }
        self.assertEqual(PoolOptions.problems(options), [])

    def test_replaced_options_of_psycopg_pool(self):
        for name, remedy in [
            ("num_workers", "remove it; a pool opens connections as they are needed"),
            ("open", "remove it; a pool opens at first use"),
            ("configure", "use a connection_created receiver"),
            (
                "reconnect_failed",
                "remove it; a warning is logged to 'django.db.pool'",
            ),
            ("kwargs", "write connection parameters into OPTIONS itself"),
            ("connection_class", "write connection parameters into OPTIONS itself"),
            (
                "close_returns",
                "remove it; a closed wrapper gives its connection back",
            ),
            ("name", "remove it; a pool is called by its alias"),
        ]:
            with self.subTest(name=name):
                self.assertIn(name, REPLACED_KEYS)
                self.assertProblem(
                    "'%s' is not an option of POOL: %s." % (name, remedy),
                    **{name: None},
                )

    # POOL.

    def test_enabled(self):
        for setting in (True, {}, {"max_size": 3}, "yes"):
            with self.subTest(setting=setting):
                self.assertIs(PoolOptions.enabled(setting), True)
        for setting in (None, False):
            with self.subTest(setting=setting):
                self.assertIs(PoolOptions.enabled(setting), False)

    def test_from_setting(self):
        self.assertEqual(self.get_values(PoolOptions.from_setting(True)), DEFAULTS)
        self.assertEqual(self.get_values(PoolOptions.from_setting({})), DEFAULTS)
        self.assertEqual(PoolOptions.from_setting({"max_size": 3}).max_size, 3)

    def test_setting_of_another_type(self):
        msg = (
            "DATABASES['other']['POOL'] is invalid. It must be True, False or a dict "
            'of options, not %s. Use "POOL": True to pool with the default options.'
        )
        for setting in ("yes", 1, [("max_size", 3)]):
            with self.subTest(setting=setting):
                with self.assertRaisesMessage(
                    ImproperlyConfigured, msg % type(setting).__name__
                ):
                    PoolOptions.from_setting(setting, "other")

    def test_setting_with_invalid_option(self):
        msg = (
            "DATABASES['default']['POOL'] is invalid. Unknown option 'max_sise'. Did "
            "you mean 'max_size'?"
        )
        with self.assertRaisesMessage(ImproperlyConfigured, msg):
            PoolOptions.from_setting({"max_sise": 3})

    def test_setting_problems(self):
        for setting in (None, False, True, {}):
            with self.subTest(setting=setting):
                self.assertEqual(PoolOptions.setting_problems(setting), [])
        self.assertEqual(len(PoolOptions.setting_problems({"max_size": 0})), 1)
