"""
Recognizing statements that touch the session: what they do lasts beyond the
transaction, and is meant for nobody but those who ran them.

What is looked for are the statements that PgBouncer lists as unsupported in
transaction pooling (https://www.pgbouncer.org/features.html), and those that
make Amazon's RDS Proxy pin a session.
"""

import re

# Why a session was touched: what is said in logs and counted in statistics.
ADVISORY_LOCK = "advisory lock"
BLOCK = "procedural code"
LISTENING = "listening"
OPEN_CURSOR = "open cursor"
PREPARED = "prepared statement"
SETTING = "setting"
TABLE_LOCK = "table lock"
TEMPORARY = "temporary table"
TRANSACTION = "transaction"
UNKNOWN = "unknown statement"
VARIABLE = "user variable"


class SessionStatements:
    """
    What a database's statements do to the session.

    `plain` are the first six characters, in upper case, of statements that
    touch no session unless is_suspicious() says so. `noise` is a regular
    expression of what to leave out before looking closer: comments and quoted
    text, which last until the end of the text if nothing ends them. `names`,
    if given, is one of the quoted names that matter nevertheless, in upper
    case and with their quotes. `rules` are pairs of a reason and a regular
    expression, matched at the beginning of a statement in upper case without
    superfluous white space. `harmless`, if given, are the first words of
    statements that touch nothing when no rule applies; all others are
    suspected to.

    Whoever writes the text of a statement may do so with bad intentions, so
    the time that a regular expression takes mustn't grow faster than the text.
    """

    def __init__(self, plain, noise, rules, harmless=None, names=None):
        self.plain = frozenset([*plain, *(start.lower() for start in plain)])
        self.noise = re.compile(noise, re.DOTALL)
        self.names = None if names is None else re.compile(names)
        self.rules = [(reason, re.compile(rule)) for reason, rule in rules]
        self.harmless = harmless

    def is_plain(self, sql):
        """
        Return whether a statement is one of those that most are, and touches
        no session. This is called for each statement, so it's a few tests of
        strings. False means that find_touch() knows.
        """
        return (
            type(sql) is str
            # Raw queries may begin with a new line.
            and (sql[:6] in self.plain or sql.lstrip()[:6].upper() in self.plain)
            and not self.is_suspicious(sql.lower())
        )

    def is_suspicious(self, sql):
        """
        Return whether a statement in lower case that begins like one of
        `plain` may touch the session.
        """
        return ";" in sql

    def find_touch(self, sql, connection=None):
        """
        Return how a statement, or several of them, touches the session: one of
        this module's reasons, or None. `connection` is the driver's.
        """
        found = None
        for statement in self.split(self.get_text(sql, connection)):
            reason = self._find_touch_of_one(statement)
            # A transaction is the least of reasons: where one is in progress
            # anyway, nobody minds its beginning.
            if reason is not None and reason != TRANSACTION:
                return reason
            found = found or reason
        return found

    def find_touch_of_call(self, procname, params):
        """
        Return what find_touch() does for calling a procedure by a cursor's
        callproc(). What it does inside isn't known.
        """
        return self.find_touch("SELECT %s()" % procname)

    def get_text(self, sql, connection):
        """Return the text of what was given to a cursor to execute."""
        if isinstance(sql, (bytes, bytearray)):
            return sql.decode(errors="replace")
        return str(sql)

    def split(self, sql):
        """Return statements in upper case, reduced to what rules look at."""
        sql = self.noise.sub(self.replace_noise, sql)
        statements = " ".join(sql.upper().split()).split(";")
        return [
            statement
            for part in statements
            # Unions may begin with parentheses.
            if (statement := part.lstrip(" (").rstrip())
        ]

    def replace_noise(self, match):
        """Return what to look at in the place of what is left out."""
        text = match[0]
        if text.startswith(("--", "/*", "#")):
            return " "
        if self.names is not None and self.names.fullmatch(text.upper()):
            return " %s " % text[1:-1]
        # Something remains of a quoted text, for it may be an argument.
        return "''"

    def _find_touch_of_one(self, statement):
        for reason, rule in self.rules:
            if rule.match(statement):
                return reason
        if self.harmless is None:
            return None
        word = re.match(r"\w*", statement)[0]
        return None if word in self.harmless else UNKNOWN


# Of a database that nothing more is known of.
SESSION_STATEMENTS = SessionStatements(
    plain=["SELECT", "INSERT", "UPDATE", "DELETE", "SAVEPO", "RELEAS"],
    noise=(
        r"'[^']*(?:''[^']*)*(?:'|\Z)"
        r'|"[^"]*(?:"|\Z)'
        r"|--[^\n]*"
        r"|/\*.*?(?:\*/|\Z)"
    ),
    rules=[
        (SETTING, r"SET (?!LOCAL |TRANSACTION |CONSTRAINTS? )|ALTER SESSION "),
        (
            TEMPORARY,
            r"(?:CREATE|DECLARE) (?:OR REPLACE )?(?:LOCAL |GLOBAL )?TEMP(?:ORARY)? ",
        ),
        (TRANSACTION, r"BEGIN$|(?:BEGIN|START) (?:WORK|TRAN)"),
    ],
)
