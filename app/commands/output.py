"""What commands print: a table or a list for people, JSON for programs.

Times are in UTC everywhere. A field whose name ends in `_ms` holds epoch milliseconds, which people see as a time.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import click

# On a terminal no column is made narrower than this to fit the others in.
MIN_WIDTH = 12
_GAP = "  "


def show(rows: Sequence[dict[str, Any]], columns: Iterable[str], as_json: bool) -> None:
    """Print rows as a table, or as a JSON list of objects.

    On a terminal, long cells are cut so that a row is one line; the first column, which identifies a row, is whole.
    """
    names = list(columns)
    if as_json:
        click.echo(json.dumps([{name: _machine(row[name]) for name in names} for row in rows], indent=1))
        return
    heading = [name.removesuffix("_ms").upper() for name in names]
    table = [heading, *([_person(row[name], name) for name in names] for row in rows)]
    widths = [max(len(line[index]) for line in table) for index in range(len(names))]
    if sys.stdout.isatty():
        widths = _fitted(widths, shutil.get_terminal_size().columns)
    for line in table:
        cells = (_cut(cell, width).ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo(_GAP.join(cells).rstrip())


def show_one(row: dict[str, Any], as_json: bool) -> None:
    """Print one thing: a line for each field, or a JSON object."""
    if as_json:
        click.echo(json.dumps({name: _machine(value) for name, value in row.items()}, indent=1))
        return
    width = max(len(name) for name in row)
    for name, value in row.items():
        click.echo(f"{name.removesuffix('_ms').ljust(width)}  {_person(value, name)}".rstrip())


def show_value(name: str, value: str, as_json: bool) -> None:
    """Print a value alone, or a JSON object with this one member."""
    if as_json:
        show_one({name: value}, as_json)
    else:
        click.echo(value)


def show_values(name: str, values: Sequence[str], as_json: bool) -> None:
    """Print values alone, one a line, or a JSON list of objects with this one member."""
    if as_json:
        show([{name: value} for value in values], [name], as_json)
    else:
        for value in values:
            click.echo(value)


def _fitted(widths: list[int], columns: int) -> list[int]:
    """The widths of columns for a terminal of so many columns; the widest but the first are made narrower."""
    widths = list(widths)
    while sum(widths) + len(_GAP) * (len(widths) - 1) > columns and len(widths) > 1:
        widest = max(range(1, len(widths)), key=widths.__getitem__)
        if widths[widest] <= MIN_WIDTH:
            break
        widths[widest] -= 1
    return widths


def _cut(cell: str, width: int) -> str:
    return cell if len(cell) <= width else cell[: width - 3] + "..."


def _machine(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    return value if isinstance(value, (str, int, float, bool, list, dict, type(None))) else str(value)


def _person(value: Any, name: str) -> str:
    if value is None:
        return "-"
    if name.endswith("_ms"):
        value = datetime.fromtimestamp(value / 1000, UTC)
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = value if isinstance(value, str) else json.dumps(value) if isinstance(value, (list, dict)) else str(value)
    # Text that a device reports must not send control sequences to the operator's terminal.
    return "".join(character if character.isprintable() else "\ufffd" for character in text)
