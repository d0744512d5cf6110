"""flask review: a description of the database for the DBA who approves it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from app.commands import markdown, review_server
from app.commands.markdown import code, row_count, size
from app.commands.shell import as_json, command, settings, show, with_database
from app.db import reviewer, statement
from app.db.errors import DriverError
from app.db.reviewer import Connection
from app.db.startup import explain
from app.db.statements import FOLDER, names
from app.db.urls import migration_url, writer_url

SELECT_TABLES = statement("review/select_tables")
SELECT_COLUMNS = statement("review/select_columns")
SELECT_INDEXES = statement("review/select_indexes")
SELECT_GRANTS = statement("review/select_grants")
SELECT_PARTITIONS = statement("partitions/select_partitions")

ROLES = ("watchpost_owner", "watchpost_writer", "watchpost_reader")


@command()
@as_json
@with_database
def review(as_json: bool) -> None:
    """Print what a DBA reviews, as Markdown: tables, grants, statements with their plans, migrations, settings.

    It changes nothing: every transaction is read-only, and statements are planned, not run. It connects as the owner.
    To find out what another role may do it becomes that role, where it may, or uses the service's own connection.
    """
    found = settings()
    urls = list(dict.fromkeys(filter(None, (migration_url(found), writer_url(found), found.read_database_url))))
    try:
        with reviewer.connect(urls[0]) as connection:
            parts = (
                _server(connection),
                _tables(connection),
                _grants(connection),
                _statements(connection, urls),
                review_server.migrations(connection),
                review_server.settings(connection),
                review_server.statistics(connection),
                review_server.backup(connection),
            )
            if as_json:
                show([_section("\n".join(part)) for part in parts], ("title", "text"), as_json)
            else:
                for part in parts:
                    click.echo("\n".join(part) + "\n")
    except DriverError as error:
        raise click.ClickException("the database can't be reviewed: " + explain(error)) from None


def _section(text: str) -> dict[str, Any]:
    heading, _, body = text.partition("\n")
    return {"title": heading.lstrip("# "), "text": body.strip()}


def _server(connection: Connection) -> Iterator[str]:
    found = connection.execute(
        "SELECT current_setting('server_version') AS version, current_database() AS name, current_user AS role, "
        "pg_size_pretty(pg_database_size(current_database())) AS size, now()::timestamptz(0) AS at"
    ).fetchone()
    assert found is not None
    yield "# Watchpost: what a DBA reviews\n"
    yield f"Database {found['name']}, {found['size']}, on PostgreSQL {found['version']},"
    yield f"seen by {found['role']} at {markdown.time(found['at'])}."


def _tables(connection: Connection) -> Iterator[str]:
    columns, indexes, partitions = (
        connection.execute(wanted.text).fetchall() for wanted in (SELECT_COLUMNS, SELECT_INDEXES, SELECT_PARTITIONS)
    )
    yield "## Tables"
    for table in connection.execute(SELECT_TABLES.text).fetchall():
        own = {"table_name": table["name"]}.items()
        yield f"\n### {table['name']}\n"
        yield f"{table['comment'] or 'Of yoyo-migrations.'}"
        yield f"Owner {table['owner']}, {row_count(table['row_estimate'])}, {size(table['bytes'])}."
        yield from markdown.table(
            ("column", "type", "null", "default", "comment"),
            (
                (
                    code(c["name"]),
                    c["type"],
                    "" if c["is_required"] else "null",
                    code(c["default_value"]),
                    c["comment"],
                )
                for c in columns
                if own <= c.items()
            ),
        )
        yield from markdown.table(
            ("index or check", "definition", "size"),
            (
                (
                    code(i["name"]),
                    code(i["definition"]),
                    size(i["bytes"]) + ("" if i["is_valid"] else " NOT VALID"),
                )
                for i in indexes
                if own <= i.items()
            ),
        )
        if table["partitions"]:
            yield from markdown.table(
                ("partition", "from", "to", "rows", "size"),
                (
                    (
                        code(p["name"]),
                        p["starts_at"],
                        p["ends_at"],
                        row_count(p["row_estimate"]),
                        size(p["bytes"]),
                    )
                    for p in partitions
                    if own <= p.items()
                ),
            )


def _grants(connection: Connection) -> Iterator[str]:
    yield "## Grants"
    yield "\nThe privileges of owners are left out. A partition has none of its own: it is read through its table."
    grants = connection.execute(SELECT_GRANTS.text).fetchall()
    yield from markdown.table(
        ("table or function", "role", "privileges"),
        ((code(grant["object_name"]), grant["grantee"], grant["privileges"]) for grant in grants),
    )


def _statements(connection: Connection, urls: list[str]) -> Iterator[str]:
    may: dict[str, list[str]] = {name: [] for name in names()}
    unknown = []
    for role in ROLES:
        other = reviewer.as_role(urls, role)
        if other is None:
            unknown.append(role)
            continue
        with other:
            for name in may:
                if reviewer.plan(other, name):
                    may[name].append(role)
    yield "## Statements"
    yield "\nAll statements of the service and of the command line. Plans are generic: for any values, which a prepared"
    yield "statement may get from its sixth use on. A role may run a statement when PostgreSQL plans it for that role."
    if unknown:
        yield f"\nNot asked as {', '.join(unknown)}: this connection may not become them, or they do not exist."
    for name in may:
        lines = (FOLDER / f"{name}.sql").read_text(encoding="utf-8").splitlines()
        end = next(number for number, line in enumerate(lines) if not line.startswith("--"))
        yield f"\n### sql/{name}.sql\n"
        yield from markdown.block("", "\n".join(line.removeprefix("--").removeprefix(" ") for line in lines[:end]))
        yield f"\nMay run it: {', '.join(may[name]) or 'none of the roles asked as'}.\n"
        yield from markdown.block("sql", "\n".join(lines[end:]))
        yield ""
        yield from markdown.block("", reviewer.plan(connection, name) or "no plan: this role may not run it")
