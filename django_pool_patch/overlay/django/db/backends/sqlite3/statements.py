"""SQLite's statements that touch the session."""

from django.db.backends.base import statements
from django.db.backends.base.statements import SessionStatements


class SQLiteStatements(SessionStatements):
    def is_suspicious(self, sql):
        return ";" in sql or "load_extension" in sql


SESSION_STATEMENTS = SQLiteStatements(
    plain=["SELECT", "INSERT", "UPDATE", "DELETE", "REPLAC", "RELEAS"],
    noise=(
        r"'[^']*(?:''[^']*)*(?:'|\Z)"
        r'|"[^"]*(?:""[^"]*)*(?:"|\Z)'
        r"|`[^`]*(?:``[^`]*)*(?:`|\Z)"
        r"|\[[^]]*(?:\]|\Z)"
        r"|--[^\n]*"
        r"|/\*.*?(?:\*/|\Z)"
    ),
    # In any of the quotes.
    names=r".(?:TEMP|LOAD_EXTENSION).",
    rules=[
        # Pragmas that tell something, that do their work at once, or that are
        # about the file.
        (None, r"PRAGMA (?:[\w']+ ?\. ?)?\w+$"),
        (
            None,
            r"PRAGMA (?:[\w']+ ?\. ?)?(?:\w+_(?:INFO|XINFO|LIST)"
            r"|(?:FOREIGN_KEY|INTEGRITY|QUICK)_CHECK"
            r"|INCREMENTAL_VACUUM|OPTIMIZE|WAL_CHECKPOINT"
            r"|APPLICATION_ID|USER_VERSION)\b",
        ),
        (
            statements.SETTING,
            # Pragmas do what they do even if they are to be explained.
            r"(?:EXPLAIN (?:QUERY PLAN )?)?PRAGMA\b"
            r"|(?:ATTACH|DETACH)\b"
            r"|.*\bLOAD_EXTENSION ?\(",
        ),
        (
            statements.TEMPORARY,
            r"CREATE (?:TEMP(?:ORARY)? |(?:VIRTUAL )?(?:TABLE|VIEW|TRIGGER)"
            r" (?:IF NOT EXISTS )?TEMP ?\.)",
        ),
        # A savepoint outside of a transaction begins one.
        (statements.TRANSACTION, r"(?:BEGIN|SAVEPOINT)\b"),
    ],
    harmless=frozenset("""
        ALTER ANALYZE COMMIT CREATE DELETE DROP END EXPLAIN INSERT PRAGMA REINDEX
        RELEASE REPLACE ROLLBACK SELECT UPDATE VACUUM VALUES WITH
        """.split()),
)
