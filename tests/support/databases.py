"""Databases of the run's own server: a template of each kind, and a copy of one for each test."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import psycopg
from psycopg import sql

_numbers = itertools.count(1)
# Databases that no test uses any more.
_unused: dict[str, list[str]] = {}


class Template(NamedTuple):
    """A database that nobody is connected to. server: the folder of its server's socket."""

    server: str
    name: str

    def url(self, database: str) -> str:
        """The superuser's URL of a database on the same server."""
        return f"postgresql://postgres@/{database}?host={self.server}"


def create(server: str, name: str) -> Template:
    """Create an empty database."""
    template = Template(server, name)
    with psycopg.connect(template.url("postgres"), autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    return template


def create_from(template: Template, name: str) -> Template:
    """Copy a template, for a template with more in it."""
    copy = Template(template.server, name)
    with psycopg.connect(template.url("postgres"), autocommit=True) as admin:
        _copy(admin, template, name)
    return copy


@contextlib.contextmanager
def clone(template: Template) -> Iterator[str]:
    """Copy the template and yield the copy's URL.

    A copy is dropped when the next one is made: while a connection to it is about to end, DROP DATABASE waits a tenth
    of a second.
    """
    unused = _unused.setdefault(template.server, [])
    name = f"test_{next(_numbers)}"
    with psycopg.connect(template.url("postgres"), autocommit=True) as admin:
        while unused:
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(unused.pop())))
        _copy(admin, template, name)
    try:
        yield template.url(name)
    finally:
        unused.append(name)


def _copy(admin: psycopg.Connection[Any], template: Template, name: str) -> None:
    # File by file takes half as long as through the WAL.
    command = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy")
    admin.execute(command.format(sql.Identifier(name), sql.Identifier(template.name)))
