"""Oracle's statements that touch the session."""

from django.db.backends.base import statements
from django.db.backends.base.statements import SessionStatements


class OracleStatements(SessionStatements):
    def is_suspicious(self, sql):
        return ";" in sql or "dbms_" in sql


SESSION_STATEMENTS = OracleStatements(
    plain=["SELECT", "INSERT", "UPDATE", "DELETE", "MERGE ", "SAVEPO", "(SELEC"],
    noise=(
        r"\b[Nn]?[Qq]'\[.*?(?:\]'|\Z)"
        r"|\b[Nn]?[Qq]'\{.*?(?:\}'|\Z)"
        r"|\b[Nn]?[Qq]'<.*?(?:>'|\Z)"
        r"|\b[Nn]?[Qq]'\(.*?(?:\)'|\Z)"
        r"|\b[Nn]?[Qq]'(?P<mark>\S).*?(?:(?P=mark)'|\Z)"
        r"|'[^']*(?:''[^']*)*(?:'|\Z)"
        r'|"[^"]*(?:"|\Z)'
        r"|--[^\n]*"
        r"|/\*.*?(?:\*/|\Z)"
    ),
    names=r'"DBMS_\w+"',
    rules=[
        (statements.ADVISORY_LOCK, r".*\bDBMS_LOCK\b"),
        (
            statements.SETTING,
            r"ALTER SESSION |SET (?!TRANSACTION |CONSTRAINTS? )"
            r"|.*\bDBMS_(?:SESSION|OUTPUT|APPLICATION_INFO)\b",
        ),
        (statements.TEMPORARY, r"CREATE PRIVATE TEMPORARY "),
        # Packages keep their variables for as long as the session.
        (statements.BLOCK, r"(?:BEGIN|DECLARE|CALL)\b"),
    ],
    harmless=frozenset("""
        ALTER ANALYZE AUDIT COMMENT COMMIT CREATE DELETE DROP EXPLAIN FLASHBACK
        GRANT INSERT LOCK MERGE NOAUDIT PURGE RENAME REVOKE ROLLBACK SAVEPOINT
        SELECT SET TRUNCATE UPDATE WITH
        """.split()),
)
