"""Why a command did not get what it wanted from the database: one sentence for an operator, without a password."""

from __future__ import annotations

import re

import psycopg

from app.db import errors, migrations
from app.db.urls import owner_url
from config.settings import Settings

CONNECT_SECONDS = 5
# What libpq and the server say of a connection that is refused -> what we say. The first that matches counts.
_REASONS = (
    ("password authentication failed|no password supplied", "the database refused the password"),
    ("pg_hba.conf", "the database lets this role connect from here under no condition (pg_hba.conf)"),
    (r'role ".*" does not exist', "the database has no such role"),
    (r'database ".*" does not exist', "the server has no such database"),
    ("permission denied for database", "the role may not connect to the database"),
    ("too many clients|too many connections|remaining connection slots", "the database has no free connection"),
    ("starting up|shutting down|recovery mode", "the database is starting or stopping"),
    ("translate host name|[Nn]ame or service not known|resolve", "the host name of the database is not known"),
    ("[Cc]onnection refused|No such file or directory", "nothing answers at the address of the database"),
    ("timeout expired|timed out", "the database did not answer in time"),
    ("SSL|certificate", "the database and this machine can't agree on TLS"),
)
# Tables that every operator's command needs, and the privileges on them.
_SELECT_PRIVILEGES = """
SELECT
    to_regclass('devices') IS NOT NULL AND to_regclass('audit_log') IS NOT NULL AS has_schema,
    coalesce(has_table_privilege(to_regclass('devices'), 'SELECT'), false) AS can_read,
    coalesce(has_table_privilege(to_regclass('audit_log'), 'INSERT'), false) AS can_write
"""


def explain(settings: Settings, error: errors.DatabaseError) -> str:
    """Connect to each database that commands use, and return what is wrong with the first that has a fault.

    error: what the command met, which is explained itself when no database has one.
    """
    owner = "WATCHPOST_OWNER_DATABASE_URL" if settings.owner_database_url else "WATCHPOST_DATABASE_URL"
    places = [(owner, owner_url(settings), True)]
    if settings.read_database_url:
        places.append(("WATCHPOST_READ_DATABASE_URL", settings.read_database_url, False))
    for variable, url, writes in places:
        if fault := _fault(url, writes):
            return f"{fault}: see {variable}" if settings.database_url else fault
    if isinstance(error, errors.Denied):
        return f"the role lacks a privilege for this command, which needs those of watchpost_owner: see {owner}"
    if isinstance(error, errors.Unavailable):
        return "the database is too busy, or its rows are locked: repeat the command"
    return f"the database refused a statement (SQLSTATE {error.sqlstate})"


def _fault(url: str, writes: bool) -> str | None:
    try:
        with psycopg.connect(url, autocommit=True, connect_timeout=CONNECT_SECONDS) as connection:
            found = connection.execute(_SELECT_PRIVILEGES).fetchone()
            is_behind = migrations.is_behind(url)
    except psycopg.Error as error:
        return refusal(str(error))
    assert found is not None
    has_schema, can_read, can_write = found
    if not has_schema:
        return "the database has no schema yet: run `flask --app wsgi migrate`"
    if not can_read or (writes and not can_write):
        return "the role lacks a privilege, since commands need those of watchpost_owner"
    return "migrations are pending: run `flask --app wsgi migrate`" if is_behind else None


def refusal(text: str) -> str:
    """Say why a connection was refused. text: of libpq's error, whose host and role are left out."""
    for pattern, reason in _REASONS:
        if re.search(pattern, text):
            return reason
    return "the database can't be reached"
