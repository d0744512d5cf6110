"""Parts of `flask review` about the server: migrations, settings, statistics, backup."""

from __future__ import annotations

import re
from collections.abc import Iterator

from app.commands import markdown
from app.db import migrations as schema
from app.db import statement
from app.db.reviewer import Connection
from app.db.statements import FOLDER

SELECT_SETTINGS = statement("review/select_settings")
SELECT_MIGRATIONS = statement("service/select_migrations")

ROOT = FOLDER.parent
# In a database where the extension is made; shared_preload_libraries has to name it.
STATISTICS = r"""
SELECT
    substring(query FROM '/\* (\w+/\w+) \*/') AS file,
    rolname AS role,
    sum(calls)::bigint AS calls,
    sum(rows)::bigint AS rows,
    round(sum(total_exec_time)::numeric) AS total_ms,
    round((sum(total_exec_time) / sum(calls))::numeric, 3) AS mean_ms,
    round(max(max_exec_time)::numeric) AS max_ms
FROM pg_stat_statements
INNER JOIN pg_roles ON pg_stat_statements.userid = pg_roles.oid
WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database()) AND query ~ '/\* \w+/\w+ \*/'
GROUP BY file, rolname
ORDER BY sum(total_exec_time) DESC
"""


def migrations(connection: Connection) -> Iterator[str]:
    applied = {row["migration_id"] for row in connection.execute(SELECT_MIGRATIONS.text).fetchall()}
    yield "## Migrations"
    yield "\nEach migration and its record in the log of migrations are one transaction. It waits for a lock for"
    yield f"{schema.LOCK_TIMEOUT} at most, up to {schema.MAX_TRIES} times, so that it never blocks writers for long."
    yield from markdown.table(
        ("migration", "state", "what, and which locks"),
        ((markdown.code(name), "applied" if name in applied else "pending", _header(name)) for name in schema.names()),
    )


def _header(name: str) -> str:
    lines = (schema.FOLDER / f"{name}.sql").read_text(encoding="utf-8").splitlines()
    end = next(number for number, line in enumerate(lines) if not line.startswith("--"))
    return " ".join(line.removeprefix("--").strip() for line in lines[:end])


def settings(connection: Connection) -> Iterator[str]:
    is_set = {row["name"]: row for row in connection.execute(SELECT_SETTINGS.text).fetchall()}
    hidden = {"value": "?", "needs_restart": False}
    yield "## Settings of the server"
    yield "\nThe values of `config/postgresql.conf`, which can be included. A value in brackets depends on the"
    yield "machine; a question mark stands for a value that this role may not see."
    yield from markdown.table(
        ("setting", "recommended", "this server", "reason"),
        (
            (
                markdown.code(name) + (", after a restart" if is_set.get(name, hidden)["needs_restart"] else ""),
                f"({markdown.code(value)})" if depends else markdown.code(value),
                markdown.code(is_set.get(name, hidden)["value"]),
                why,
            )
            for name, value, depends, why in wanted()
        ),
    )
    yield "\nTimeouts are the roles' own, set by `config/roles.sql`."


def wanted() -> Iterator[tuple[str, str, bool, str]]:
    """Yield each setting of config/postgresql.conf: name, value, whether it depends on the machine, reason."""
    for block in (ROOT / "config" / "postgresql.conf").read_text(encoding="utf-8").split("\n\n")[1:]:
        lines = block.splitlines()
        why = " ".join(line.removeprefix("# ") for line in lines if line.startswith("# "))
        for line in lines:
            if found := re.fullmatch(r"(#?)(\w+) = (.*)", line):
                yield found[2], found[3].strip("'"), bool(found[1]), why


def statistics(connection: Connection) -> Iterator[str]:
    yield "## Where the time goes"
    yield "\nEach statement names its file in a comment behind its first word. pg_stat_activity shows the comment,"
    yield "and so does pg_stat_statements. With that extension, a member of pg_read_all_stats sees the slowest files:\n"
    yield from markdown.block("sql", STATISTICS.strip() + ";")
    # A row without columns is an empty dict, which is false.
    if connection.execute("SELECT FROM pg_extension WHERE extname = 'pg_stat_statements'").fetchone() is None:
        yield "\nThis database does not have it."
        return
    found = connection.execute(STATISTICS).fetchall()
    yield from markdown.table(
        ("file", "role", "calls", "rows", "total ms", "mean ms", "max ms"),
        ((markdown.code(row["file"]), *list(row.values())[1:]) for row in found),
    )


def backup(connection: Connection) -> Iterator[str]:
    yield "## Backup and restore"
    # Its headings one level deeper, below this one.
    yield (ROOT / "docs" / "backup.md").read_text(encoding="utf-8").partition("\n")[2].replace("\n## ", "\n### ")
