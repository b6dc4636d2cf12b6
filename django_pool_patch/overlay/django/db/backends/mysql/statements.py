"""The statements of MySQL and MariaDB that touch the session."""

import re

from django.db.backends.base import statements
from django.db.backends.base.statements import SessionStatements

# The mark of comments that are executed, with the version that they are for.
CODE_MARK = r"/\*M?!\d*"

# What MariaDB's settings for a single statement are put before it by.
STATEMENT_SETTINGS = re.compile(r"SET STATEMENT .*? FOR (?P<statement>.*)")


class MySQLStatements(SessionStatements):
    def is_suspicious(self, sql):
        return (
            "@" in sql
            or ";" in sql
            or "get_lock" in sql
            or "sql_calc_found_rows" in sql
            or "last_insert_id" in sql
        )

    def find_touch_of_call(self, procname, params):
        # mysqlclient passes arguments by user variables.
        return statements.VARIABLE if params else None

    def split(self, sql):
        return [
            match["statement"].lstrip(" (") if match else statement
            for statement in super().split(sql)
            for match in [STATEMENT_SETTINGS.match(statement)]
        ]

    def replace_noise(self, match):
        if (code := match["code"]) is not None:
            # Without marks there's no comment of this kind in it.
            code = re.sub(CODE_MARK, " ", code)
            return " %s " % self.noise.sub(self.replace_noise, code)
        return super().replace_noise(match)


SESSION_STATEMENTS = MySQLStatements(
    plain=[
        "SELECT",
        "INSERT",
        "UPDATE",
        "DELETE",
        "REPLAC",
        "SAVEPO",
        "RELEAS",
        "(SELEC",
    ],
    noise=(
        r"'[^'\\]*(?:(?:''|\\.)[^'\\]*)*(?:'|\\?\Z)"
        r'|"[^"\\]*(?:(?:""|\\.)[^"\\]*)*(?:"|\\?\Z)'
        r"|`[^`]*(?:``[^`]*)*(?:`|\Z)"
        r"|(?:--(?=\s)|#)[^\n]*"
        r"|" + CODE_MARK + r"(?P<code>.*?)(?:\*/|\Z)"
        r"|/\*.*?(?:\*/|\Z)"
    ),
    names=r"`(?:GET_LOCK|LAST_INSERT_ID)`",
    rules=[
        # Where a user's name is written like 'name'@'host', or name@host.
        (
            None,
            r"(?:GRANT|REVOKE|SHOW GRANTS|SET DEFAULT ROLE)\b"
            r"|(?:CREATE|ALTER|DROP|RENAME) (?:OR REPLACE )?(?:USER|ROLE)\b"
            r"|SET PASSWORD\b[^,]*$",
        ),
        (
            statements.VARIABLE,
            # Others have a definer.
            r"(?!(?:CREATE|ALTER) ).*(?<![@'])@(?!@)|.*(?<![@\w'])@(?!@)",
        ),
        (
            statements.SETTING,
            r"SET\b(?! (?:GLOBAL|PERSIST|PERSIST_ONLY) [^,]*$"
            r"| ?@@(?:GLOBAL|PERSIST|PERSIST_ONLY)\.[^,]*$)"
            r"|USE\b"
            r"|.*\bSQL_CALC_FOUND_ROWS\b"
            # With an argument it sets what it returns the next time.
            r"|.*\bLAST_INSERT_ID ?\( ?[^ )]",
        ),
        (
            statements.ADVISORY_LOCK,
            # Whoever releases one has it.
            r".*\bGET_LOCK ?\(",
        ),
        (
            statements.TABLE_LOCK,
            r"(?:UN)?LOCK (?:TABLES?|INSTANCE)\b"
            r"|FLUSH\b.*\b(?:READ LOCK|FOR EXPORT)\b"
            r"|BACKUP\b",
        ),
        (statements.TEMPORARY, r"(?:CREATE|DROP) (?:OR REPLACE )?TEMPORARY "),
        (
            statements.PREPARED,
            r"(?:PREPARE|EXECUTE|DEALLOCATE|DROP PREPARE)\b",
        ),
        (statements.OPEN_CURSOR, r"HANDLER\b"),
        (statements.BLOCK, r"BEGIN NOT ATOMIC\b"),
        (
            statements.TRANSACTION,
            r"(?:BEGIN|START TRANSACTION|XA)\b|(?:COMMIT|ROLLBACK)\b.* AND CHAIN$",
        ),
    ],
    harmless=frozenset("""
        ALTER ANALYZE CALL CHANGE CHECK CHECKSUM COMMIT CREATE DELETE DESC DESCRIBE
        DO DROP EXPLAIN FLUSH GET GRANT HELP INSERT INSTALL KILL LOAD OPTIMIZE
        PURGE RELEASE RENAME REPAIR REPLACE RESET RESIGNAL REVOKE ROLLBACK SAVEPOINT
        SELECT SET SHOW SHUTDOWN SIGNAL START STOP TABLE TRUNCATE UNINSTALL UPDATE
        VALUES WITH
        """.split()),
)
