"""Databases of the run's own server: a template of each kind, and a copy of one for each test."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import NamedTuple

from psycopg import sql
from pytest_postgresql.janitor import DatabaseJanitor

PORT = 5432

_numbers = itertools.count(1)
# Copies that no test uses any more.
_unused: list[DatabaseJanitor] = []


class Copy(DatabaseJanitor):
    """A copy that is made file by file: half the time of one through the WAL."""

    def _build_create_database_sql(self) -> sql.Composed:
        return super()._build_create_database_sql() + sql.SQL(" STRATEGY file_copy")


class Template(NamedTuple):
    """A database that nobody is connected to. server: the folder of its server's socket."""

    server: str
    name: str

    def url(self, database: str) -> str:
        """The superuser's URL of a database on the same server."""
        return f"postgresql://postgres@/{database}?host={self.server}"


def create(server: str, name: str) -> Template:
    """Create an empty database."""
    DatabaseJanitor(host=server, port=PORT, user="postgres", dbname=name).init()
    return Template(server, name)


def create_from(template: Template, name: str) -> Template:
    """Copy a template, for a template with more in it."""
    _copy(template, name).init()
    return Template(template.server, name)


@contextlib.contextmanager
def clone(template: Template) -> Iterator[str]:
    """Copy the template and yield the copy's URL.

    A copy is dropped when the next one is made: while a connection to it is about to end, DROP DATABASE waits a tenth
    of a second.
    """
    while _unused:
        _unused.pop().drop()
    janitor = _copy(template, f"test_{next(_numbers)}")
    janitor.init()
    try:
        yield template.url(janitor.dbname)
    finally:
        _unused.append(janitor)


def _copy(template: Template, name: str) -> Copy:
    return Copy(host=template.server, port=PORT, user="postgres", dbname=name, template_dbname=template.name)
