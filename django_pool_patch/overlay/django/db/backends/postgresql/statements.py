"""PostgreSQL's statements that touch the session."""

from django.db.backends.base import statements
from django.db.backends.base.statements import SessionStatements


class PostgreSQLStatements(SessionStatements):
    def is_suspicious(self, sql):
        return (
            ";" in sql
            or "advisory" in sql
            or "set_config" in sql
            or "set_limit" in sql
            or "setseed" in sql
            or "dblink_" in sql
            or (
                "temp" in sql
                and ("pg_temp" in sql or ("into" in sql and sql[:6] != "insert"))
            )
        )

    def get_text(self, sql, connection):
        if hasattr(sql, "as_string"):
            # psycopg's composed queries.
            return sql.as_string(connection)
        return super().get_text(sql, connection)


SESSION_STATEMENTS = PostgreSQLStatements(
    plain=[
        "SELECT",
        "INSERT",
        "UPDATE",
        "DELETE",
        "SAVEPO",
        "RELEAS",
        "(SELEC",
    ],
    noise=(
        r"\b[Ee]'[^'\\]*(?:(?:''|\\.)[^'\\]*)*(?:'|\\?\Z)"
        r"|'[^']*(?:''[^']*)*(?:'|\Z)"
        r'|"[^"]*(?:""[^"]*)*(?:"|\Z)'
        # Names may contain a dollar sign too.
        r"|(?<![\w$])\$(?P<tag>(?:[^\W\d]\w*)?)\$.*?(?:\$(?P=tag)\$|\Z)"
        r"|--[^\n\r]*"
        # Comments may contain comments.
        r"|/\*(?:/\*.*?(?:\*/|\Z)|(?!\*/).)*(?:\*/|\Z)"
    ),
    names=(
        r'"(?:PG_TEMP(?:_\d+)?|SET_CONFIG|SET_LIMIT|SETSEED|DBLINK_\w+'
        r'|PG_(?:TRY_)?ADVISORY_(?:UN)?LOCK(?:_SHARED|_ALL)?)"'
    ),
    rules=[
        # A transaction's end is the end of these.
        (None, r"CREATE (?:LOCAL |GLOBAL )?TEMP(?:ORARY)? TABLE .*\bON COMMIT DROP\b"),
        (
            statements.SETTING,
            r"SET\b(?! (?:LOCAL|TRANSACTION|CONSTRAINTS)\b(?! ?\.))"
            r"|(?:RESET|DISCARD|LOAD)\b"
            # The third argument says whether it's for the transaction only.
            r"|.*\bSET_CONFIG ?\((?![^()]*(?:\([^()]*\)[^()]*)*"
            r", ?(?:IS_LOCAL ?(?:=>|:=) ?)?TRUE ?\))"
            # Of pg_trgm.
            r"|.*\b(?:SETSEED|SET_LIMIT) ?\(",
        ),
        (
            statements.ADVISORY_LOCK,
            r".*\bPG_(?:TRY_)?ADVISORY_(?:UN)?LOCK(?:_SHARED|_ALL)?\b",
        ),
        (
            statements.TEMPORARY,
            r"(?:EXPLAIN\b.* )?CREATE (?:OR REPLACE )?(?:LOCAL |GLOBAL )?"
            r"TEMP(?:ORARY)?\b"
            r"|(?:SELECT|WITH|EXPLAIN)\b.*\bINTO (?:LOCAL |GLOBAL )?"
            r"TEMP(?:ORARY)?\b(?! ?\.)"
            r"|.*\bPG_TEMP(?:_\d+)?\b",
        ),
        # What it does is up to its code.
        (statements.BLOCK, r"DO\b"),
        (statements.LISTENING, r"(?:UN)?LISTEN\b"),
        (
            statements.PREPARED,
            r"PREPARE\b(?! TRANSACTION\b)|EXECUTE\b|DEALLOCATE\b",
        ),
        (statements.OPEN_CURSOR, r"DECLARE\b.*\bWITH HOLD\b|.*\bDBLINK_"),
        (
            statements.TRANSACTION,
            r"(?:BEGIN|START)\b|(?:COMMIT|ROLLBACK|ABORT|END)\b.* AND CHAIN$",
        ),
    ],
    harmless=frozenset("""
        ABORT ALTER ANALYSE ANALYZE CALL CHECKPOINT CLOSE CLUSTER COMMENT COMMIT
        COPY CREATE DECLARE DELETE DROP END EXPLAIN FETCH GRANT IMPORT INSERT
        LOCK MERGE MOVE NOTIFY PREPARE REASSIGN REFRESH REINDEX RELEASE REVOKE
        ROLLBACK SAVEPOINT SECURITY SELECT SET SHOW TABLE TRUNCATE UPDATE VACUUM
        VALUES WITH
        """.split()),
)
