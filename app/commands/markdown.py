"""Markdown of what a command prints for people to read and to keep."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any


def table(heads: Iterable[str], rows: Iterable[Iterable[Any]]) -> Iterator[str]:
    """A Markdown table, or nothing without rows."""
    lines = ["| " + " | ".join(cell(value) for value in row) + " |" for row in rows]
    if lines:
        heads = list(heads)
        yield "\n| " + " | ".join(heads) + " |\n|" + "---|" * len(heads)
        yield from lines


def block(language: str, text: str) -> Iterator[str]:
    yield f"```{language}\n{text}\n```"


def cell(value: Any) -> str:
    if isinstance(value, datetime):
        return time(value)
    return "" if value is None else str(value).replace("|", "\\|").replace("\n", " ")


def code(value: Any) -> str:
    return "" if value is None else f"`{value}`"


def row_count(estimate: int | None) -> str:
    return "not analyzed" if estimate is None else f"about {estimate:,} rows"


def size(size: int | None) -> str:
    return "" if size is None else f"{size / 1024:,.0f} KiB"


def time(value: datetime) -> str:
    return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
