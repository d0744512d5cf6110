"""flask review: what a DBA reviews before this runs on their server, and looks up afterwards."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import click
import psycopg
from flask import current_app
from psycopg import sql
from psycopg.rows import dict_row

from app.commands.shell import with_database
from app.db import embedded, migrations, plans, statement
from app.db.database import migration_url, writer_url
from app.db.statements import FOLDER, names

SELECT_TABLES = statement("review/select_tables")
SELECT_COLUMNS = statement("review/select_columns")
SELECT_INDEXES = statement("review/select_indexes")
SELECT_GRANTS = statement("review/select_grants")
SELECT_SETTINGS = statement("review/select_settings")
SELECT_PARTITIONS = statement("partitions/select_partitions")
SELECT_MIGRATIONS = statement("service/select_migrations")

ROOT = FOLDER.parent
ROLES = ("watchpost_owner", "watchpost_writer", "watchpost_reader")
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

Connection = psycopg.Connection[dict[str, Any]]


@click.command()
@with_database
def review() -> None:
    """Print what a DBA reviews, as Markdown: tables, grants, statements with their plans, migrations, settings.

    It changes nothing: every look is a read-only transaction, and plans are asked for, not run. Connects as the owner,
    and to learn what other roles may do becomes them where it is allowed to, or uses the service's own connection.
    """
    settings = current_app.config["SETTINGS"]
    urls = list(
        dict.fromkeys(filter(None, (migration_url(settings), writer_url(settings), settings.read_database_url)))
    )
    try:
        with _looking(urls[0]) as connection:
            for part in (_server, _tables, _grants):
                click.echo("\n".join(part(connection)) + "\n")
            click.echo("\n".join(_statements(connection, urls)) + "\n")
            for part in (_migrations, _settings, _statistics, _backup):
                click.echo("\n".join(part(connection)) + "\n")
    except psycopg.Error as error:
        raise click.ClickException("the database can't be reviewed: " + embedded.explain(error)) from None


def _looking(url: str) -> Connection:
    connection: Connection = psycopg.connect(
        url, autocommit=True, row_factory=dict_row, options="-c default_transaction_read_only=on -c lock_timeout=1s"
    )
    return connection


def _server(connection: Connection) -> Iterator[str]:
    found = connection.execute(
        "SELECT current_setting('server_version') AS version, current_database() AS name, current_user AS role, "
        "pg_size_pretty(pg_database_size(current_database())) AS size, now()::timestamptz(0) AS at"
    ).fetchone()
    assert found is not None
    yield "# Watchpost: what a DBA reviews\n"
    yield f"Database {found['name']}, {found['size']}, on PostgreSQL {found['version']},"
    yield f"seen by {found['role']} at {found['at'].isoformat()}."


def _tables(connection: Connection) -> Iterator[str]:
    columns, indexes, partitions = (
        connection.execute(wanted.text).fetchall() for wanted in (SELECT_COLUMNS, SELECT_INDEXES, SELECT_PARTITIONS)
    )
    yield "## Tables"
    for table in connection.execute(SELECT_TABLES.text).fetchall():
        own = {"table_name": table["name"]}.items()
        yield f"\n### {table['name']}\n"
        yield f"{table['comment'] or 'Of yoyo-migrations.'}"
        yield f"Owner {table['owner']}, {_rows(table['row_estimate'])}, {_size(table['bytes'])}."
        yield from _table(
            ("column", "type", "null", "default", "comment"),
            (
                (
                    _code(c["name"]),
                    c["type"],
                    "" if c["is_required"] else "null",
                    _code(c["default_value"]),
                    c["comment"],
                )
                for c in columns
                if own <= c.items()
            ),
        )
        yield from _table(
            ("index or check", "definition", "size"),
            (
                (_code(i["name"]), _code(i["definition"]), _size(i["bytes"]) + ("" if i["is_valid"] else " NOT VALID"))
                for i in indexes
                if own <= i.items()
            ),
        )
        if table["partitions"]:
            yield from _table(
                ("partition", "from", "to", "rows", "size"),
                (
                    (_code(p["name"]), p["starts_at"], p["ends_at"], _rows(p["row_estimate"]), _size(p["bytes"]))
                    for p in partitions
                    if own <= p.items()
                ),
            )


def _grants(connection: Connection) -> Iterator[str]:
    yield "## Grants"
    yield "\nBeside what owners may. A partition needs none: whoever may use its table reaches it through that."
    grants = connection.execute(SELECT_GRANTS.text).fetchall()
    yield from _table(
        ("table or function", "role", "privileges"),
        ((_code(grant["object_name"]), grant["grantee"], grant["privileges"]) for grant in grants),
    )


def _statements(connection: Connection, urls: list[str]) -> Iterator[str]:
    may: dict[str, list[str]] = {name: [] for name in names()}
    unknown = []
    for role in ROLES:
        other = _as_role(urls, role)
        if other is None:
            unknown.append(role)
            continue
        with other:
            for name in may:
                if _plan(other, name):
                    may[name].append(role)
    yield "## Statements"
    yield "\nAll that the service and the command line send; plans are those for any values (generic), which a prepared"
    yield "statement may get from its sixth use on. Who may run it: the roles for which PostgreSQL plans it."
    if unknown:
        yield f"\nNot asked as {', '.join(unknown)}: this connection may not become them, or they are not there."
    for name in may:
        lines = (FOLDER / f"{name}.sql").read_text(encoding="utf-8").splitlines()
        end = next(number for number, line in enumerate(lines) if not line.startswith("--"))
        yield f"\n### sql/{name}.sql\n"
        yield from _block("", "\n".join(line.removeprefix("--").removeprefix(" ") for line in lines[:end]))
        yield f"\nMay run it: {', '.join(may[name]) or 'none of the roles asked as'}.\n"
        yield from _block("sql", "\n".join(lines[end:]))
        yield ""
        yield from _block("", _plan(connection, name) or "no plan: this role may not run it")


def _plan(connection: Connection, name: str) -> str | None:
    """The plan of a statement, if this connection's role may run it."""
    try:
        return str(plans.explain(connection, statement(name), plans.examples(), True, "COSTS ON"))
    except psycopg.errors.InsufficientPrivilege:
        return None


def _as_role(urls: list[str], role: str) -> Connection | None:
    """A connection that is this role, from the first of the addresses that gives one."""
    for url in urls:
        connection = _looking(url)
        try:
            connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(role)))
            return connection
        # There is no such role, or this one may not become it.
        except (psycopg.errors.InvalidParameterValue, psycopg.errors.InsufficientPrivilege):
            connection.close()
    return None


def _migrations(connection: Connection) -> Iterator[str]:
    applied = {row["migration_id"] for row in connection.execute(SELECT_MIGRATIONS.text).fetchall()}
    yield "## Migrations"
    yield "\nEach is one transaction with its note that it is applied. It waits for a lock for"
    yield f"{migrations.LOCK_TIMEOUT} at most, up to {migrations.MOST_TRIES} times, so that writers behind it go on."
    yield from _table(
        ("migration", "state", "what, and which locks"),
        ((_code(name), "applied" if name in applied else "pending", _header(name)) for name in migrations.names()),
    )


def _header(name: str) -> str:
    lines = (migrations.FOLDER / f"{name}.sql").read_text(encoding="utf-8").splitlines()
    end = next(number for number, line in enumerate(lines) if not line.startswith("--"))
    return " ".join(line.removeprefix("--").strip() for line in lines[:end])


def _settings(connection: Connection) -> Iterator[str]:
    is_set = {row["name"]: row for row in connection.execute(SELECT_SETTINGS.text).fetchall()}
    hidden = {"value": "?", "needs_restart": False}
    yield "## Settings of the server"
    yield "\nAs in `config/postgresql.conf`, which can be included; what is in brackets depends on the machine, ? is"
    yield "what this role may not see."
    yield from _table(
        ("setting", "to be", "is here", "why"),
        (
            (
                _code(name) + (", after a restart" if is_set.get(name, hidden)["needs_restart"] else ""),
                f"({_code(value)})" if depends else _code(value),
                _code(is_set.get(name, hidden)["value"]),
                why,
            )
            for name, value, depends, why in wanted()
        ),
    )
    yield "\nTimeouts are the roles' own, set by `config/roles.sql`."


def wanted() -> Iterator[tuple[str, str, bool, str]]:
    """The settings of config/postgresql.conf: name, value, whether it depends on the machine, why."""
    for block in (ROOT / "config" / "postgresql.conf").read_text(encoding="utf-8").split("\n\n")[1:]:
        lines = block.splitlines()
        why = " ".join(line.removeprefix("# ") for line in lines if line.startswith("# "))
        for line in lines:
            if found := re.fullmatch(r"(#?)(\w+) = (.*)", line):
                yield found[2], found[3].strip("'"), bool(found[1]), why


def _statistics(connection: Connection) -> Iterator[str]:
    yield "## Where the time goes"
    yield "\nThe name of a file is a comment behind the first word of what is sent, so pg_stat_activity shows it, and"
    yield "pg_stat_statements, which from PostgreSQL 18 on cuts off what comes before the first word. Where that"
    yield "extension is there, this says to a member of pg_read_all_stats which files take the time:\n"
    yield from _block("sql", STATISTICS.strip() + ";")
    # A row without columns is an empty dict, which is false.
    if connection.execute("SELECT extname FROM pg_extension WHERE extname = 'pg_stat_statements'").fetchone() is None:
        yield "\nHere it is not there."
        return
    found = connection.execute(STATISTICS).fetchall()
    yield from _table(
        ("file", "role", "calls", "rows", "total ms", "mean ms", "max ms"),
        ((_code(row["file"]), *list(row.values())[1:]) for row in found),
    )


def _backup(connection: Connection) -> Iterator[str]:
    yield "## Backup and restore"
    yield (ROOT / "README.md").read_text(encoding="utf-8").partition("## Backup and restore\n")[2].partition("\n## ")[0]


def _table(heads: Iterable[str], rows: Iterable[Iterable[Any]]) -> Iterator[str]:
    """A Markdown table, or nothing without rows."""
    lines = ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows]
    if lines:
        heads = list(heads)
        yield "\n| " + " | ".join(heads) + " |\n|" + "---|" * len(heads)
        yield from lines


def _block(language: str, text: str) -> Iterator[str]:
    yield f"```{language}\n{text}\n```"


def _cell(value: Any) -> str:
    return "" if value is None else str(value).replace("|", "\\|").replace("\n", " ")


def _code(value: Any) -> str:
    return "" if value is None else f"`{value}`"


def _rows(estimate: int | None) -> str:
    return "not analyzed" if estimate is None else f"about {estimate:,} rows"


def _size(size: int | None) -> str:
    return "" if size is None else f"{size / 1024:,.0f} KiB"
