"""What all commands share: a database that runs, output for people and for programs, durations."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from functools import wraps
from typing import Any, TypeVar

import click
from flask import current_app
from flask.cli import with_appcontext

from app.api import problems
from app.db import owner, reader
from app.dev import embedded
from app.dev.programs import EmbeddedError

Command = TypeVar("Command", bound=Callable[..., Any])

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


class Duration(click.ParamType):  # type: ignore[type-arg]
    """A number and a unit: 90s, 15m, 8h, 30d, 2w. Becomes seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"([1-9][0-9]{0,8})([smhdw])", value)
        if not match:
            self.fail("must be a number and a unit, such as 90s, 15m, 8h, 30d or 2w.", param, ctx)
        seconds = int(match[1]) * _UNITS[match[2]]
        if seconds > 3650 * 86400:
            self.fail("must be at most ten years.", param, ctx)
        return seconds


def with_database(command: Command) -> Command:
    """Run a command with the database up: the embedded one is started for it, if it does not run already."""

    @with_appcontext
    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        settings = current_app.config["SETTINGS"]
        try:
            with contextlib.ExitStack() as stack:
                if not settings.database_url:
                    stack.enter_context(embedded.running(settings.data_dir))
                stack.callback(owner.close)
                stack.callback(reader.close)
                return command(*args, **kwargs)
        except EmbeddedError as error:
            raise click.ClickException(str(error)) from None
        except problems.Problem as problem:
            hint = "the database can't be reached, or has no schema yet: run `flask --app wsgi migrate`"
            raise click.ClickException(hint if problem.status >= 500 else problem.detail) from None

    return wrapped  # type: ignore[return-value]


def show(rows: Sequence[dict[str, Any]], columns: Iterable[str], as_json: bool) -> None:
    """Print rows: as a table with times in UTC, or as JSON."""
    names = list(columns)
    if as_json:
        click.echo(json.dumps([{name: _machine(row[name]) for name in names} for row in rows], indent=1))
        return
    table = [[name.upper() for name in names], *([_person(row[name]) for name in names] for row in rows)]
    widths = [max(len(line[index]) for line in table) for index in range(len(names))]
    for line in table:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def show_one(row: dict[str, Any], as_json: bool) -> None:
    """Print one thing: a line for each field, or as JSON."""
    if as_json:
        click.echo(json.dumps({name: _machine(value) for name, value in row.items()}, indent=1))
        return
    width = max(len(name) for name in row)
    for name, value in row.items():
        click.echo(f"{name.ljust(width)}  {_person(value)}".rstrip())


def _machine(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    return value if isinstance(value, (str, int, float, bool, list, dict, type(None))) else str(value)


def _person(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = value if isinstance(value, str) else json.dumps(value) if isinstance(value, (list, dict)) else str(value)
    # What a device reports must not steer the operator's terminal.
    return "".join(character if character.isprintable() else "\ufffd" for character in text)
