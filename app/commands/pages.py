"""Work through a large table, a page and a transaction at a time, and say how far it is."""

from __future__ import annotations

import uuid
from typing import Any

import click

from app.db import Statement, owner

ROWS = 5_000
# Before every row of a table that is keyed by time, device and id.
FIRST_EVENT: dict[str, Any] = {"after_ms": -1, "after_device": "", "after_id": uuid.UUID(int=0)}
FIRST_NAME: dict[str, Any] = {"after": ""}


def through(page: Statement, what: str, after: dict[str, Any], **parameters: Any) -> int:
    """Run a statement on page after page until it returns no row. Returns how many rows it has changed.

    Each page is a transaction: whoever stops it loses one page's work, and a repeat does the rest.
    """
    changed, pages = 0, 0
    while found := owner.run(page, **parameters, **after, amount=ROWS):
        after = {name: found[0][name] for name in after}
        changed += found[0]["changed"]
        pages += 1
        if pages % 20 == 0:
            click.echo(f"{what}: {pages * ROWS} rows looked at, {changed} changed", err=True)
    return changed
