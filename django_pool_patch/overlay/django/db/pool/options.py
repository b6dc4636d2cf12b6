"""POOL: its keys, their defaults, and what is wrong with them."""

import difflib

from django.core.exceptions import ImproperlyConfigured

# Keys of psycopg_pool's classes that POOL replaces by something else. People
# who move over from OPTIONS["pool"] deserve better than "unknown key".
REPLACED_KEYS = {
    "num_workers": "remove it; a pool opens connections as they are needed",
    "open": "remove it; a pool opens at first use",
    "configure": "use a connection_created receiver",
    "reconnect_failed": "remove it; a warning is logged to 'django.db.pool'",
    "kwargs": "write connection parameters into OPTIONS itself",
    "connection_class": "write connection parameters into OPTIONS itself",
    "close_returns": "remove it; a closed wrapper gives its connection back",
    "name": "remove it; a pool is called by its alias",
}


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_integer(value):
    return isinstance(value, int) and not isinstance(value, bool)


def _at_least(minimum, kind, optional=False):
    """Return (test, description) of a number that is at least `minimum`."""
    is_kind = _is_integer if kind == "an integer" else _is_number
    return (
        lambda value: (value is None and optional)
        or (is_kind(value) and value >= minimum),
        "%s of at least %s%s" % (kind, minimum, ", or None" if optional else ""),
    )


def _positive(optional=False):
    """Return (test, description) of a number of seconds above zero."""
    return (
        lambda value: (value is None and optional) or (_is_number(value) and value > 0),
        "a number of seconds above 0%s" % (", or None" if optional else ""),
    )


def _choice(*choices, callback=False):
    """Return (test, description) of a word, or a callable or path to one."""
    return (
        lambda value: value in choices
        or (callback and (callable(value) or isinstance(value, str) and "." in value)),
        "one of %s%s"
        % (
            ", ".join("'%s'" % choice for choice in choices),
            ", or a dotted path to a callable" if callback else "",
        ),
    )


def _dotted_path():
    return (
        lambda value: value is None
        or isinstance(value, type)
        or (isinstance(value, str) and "." in value.strip(".")),
        "a dotted path to a subclass of django.db.pool.BasePool",
    )


class PoolOptions:
    """
    The options of one pool, validated.

    Keyword arguments (times are in seconds):

    * min_size (0): connections kept open, also when nobody uses them.
    * max_size (10): the most connections there may be; None for no limit.
    * timeout (30.0): the longest wait for a connection; None waits forever.
    * max_waiting (0): callers beyond this number are refused instead of
      waiting; 0 for no limit.
    * max_lifetime (3600.0): age at which a connection is replaced, less up to
      10 % at random; None for no limit.
    * max_idle (600.0): idle time after which a connection that min_size does
      not ask for is closed; None for no limit.
    * mode ("session"): how long a wrapper keeps a connection: "session" until
      it's closed, "transaction" for a statement or a transaction.
    * check ("auto"): how a connection's health is found out before it is
      lent: "auto", "ping", "off", or a callable taking the driver's
      connection, and raising or returning False if it isn't healthy.
    * reset ("auto"): how a connection is cleaned when it comes back: "auto",
      "always", "rollback", or a callable taking the driver's connection. What
      that leaves undone, "auto" does.
    * leak_threshold (None): time in use after which a holder is logged with
      its stack; None switches it off.
    * reconnect_timeout (300.0): how long connecting is tried again in the
      background before it is reported as failed.
    * pool_class (None): a BasePool to use instead of the backend's.

    Raise ImproperlyConfigured naming everything that is wrong.
    """

    # name: (default, (test, description))
    fields = {
        "min_size": (0, _at_least(0, "an integer")),
        "max_size": (10, _at_least(1, "an integer", optional=True)),
        "timeout": (30.0, _at_least(0, "a number of seconds", optional=True)),
        "max_waiting": (0, _at_least(0, "an integer")),
        "max_lifetime": (3600.0, _positive(optional=True)),
        "max_idle": (600.0, _positive(optional=True)),
        "mode": ("session", _choice("session", "transaction")),
        "check": ("auto", _choice("auto", "ping", "off", callback=True)),
        "reset": ("auto", _choice("auto", "always", "rollback", callback=True)),
        "leak_threshold": (None, _positive(optional=True)),
        "reconnect_timeout": (300.0, _positive()),
        "pool_class": (None, _dotted_path()),
    }

    __slots__ = tuple(fields)

    def __init__(self, **options):
        if problems := self.problems(options):
            raise ImproperlyConfigured("Invalid pool options: %s" % " ".join(problems))
        for name, (default, _) in self.fields.items():
            setattr(self, name, options.get(name, default))

    def __repr__(self):
        return "<%s %s>" % (
            type(self).__name__,
            " ".join("%s=%r" % (name, getattr(self, name)) for name in self.fields),
        )

    @staticmethod
    def enabled(setting):
        """Return whether POOL's value `setting` asks for a pool."""
        return setting is not None and setting is not False

    @classmethod
    def from_setting(cls, setting, alias="default"):
        """
        Return the options that POOL's value `setting`, True or a dict, gives.

        Raise ImproperlyConfigured naming `alias` and everything wrong.
        """
        if problems := cls.setting_problems(setting):
            raise ImproperlyConfigured(
                "DATABASES['%s']['POOL'] is invalid. %s" % (alias, " ".join(problems))
            )
        return cls(**({} if setting is True else setting))

    @classmethod
    def setting_problems(cls, setting):
        """Return a list of sentences on what is wrong with POOL's value."""
        if setting is True or not cls.enabled(setting):
            return []
        if not isinstance(setting, dict):
            return [
                "It must be True, False or a dict of options, not %s. Use "
                '"POOL": True to pool with the default options.'
                % type(setting).__name__
            ]
        return cls.problems(setting)

    @classmethod
    def problems(cls, options):
        """Return a list of sentences on what is wrong with `options`."""
        problems = {}
        for name, value in options.items():
            if name not in cls.fields:
                problems[name] = cls._unknown_key_problem(name)
                continue
            is_valid, description = cls.fields[name][1]
            if not is_valid(value):
                # Values are shown: no option of a pool is a secret.
                problems[name] = "'%s' must be %s, not %r." % (
                    name,
                    description,
                    value,
                )
        if not problems.keys() & {"min_size", "max_size"}:
            min_size = options.get("min_size", cls.fields["min_size"][0])
            max_size = options.get("max_size", cls.fields["max_size"][0])
            if max_size is not None and min_size > max_size:
                problems["sizes"] = (
                    "'min_size' (%d) must not exceed 'max_size' (%d). Raise "
                    "'max_size' or lower 'min_size'." % (min_size, max_size)
                )
        return list(problems.values())

    @classmethod
    def _unknown_key_problem(cls, name):
        if name in REPLACED_KEYS:
            return "'%s' is not an option of POOL: %s." % (name, REPLACED_KEYS[name])
        matches = difflib.get_close_matches(str(name), cls.fields, n=1)
        return "Unknown option %r. %s" % (
            name,
            (
                "Did you mean '%s'?" % matches[0]
                if matches
                else "Remove it, or use one of: %s." % ", ".join(cls.fields)
            ),
        )
