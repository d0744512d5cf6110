"""Work through a large table, a page and a transaction at a time, and say how far it is."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any, TypeVar

import click

from app.commands.audit import INSERT_ENTRY, entry
from app.db import Statement, Unavailable, owner, statement

T = TypeVar("T")
Run = Callable[..., list[dict[str, Any]]]

FREEZE_HOLDS = statement("holds/freeze_holds")

ROWS = 5_000
# Before every row of a table that is keyed by time, device and id.
FIRST_EVENT: dict[str, Any] = {"after_ms": -1, "after_device": "", "after_id": uuid.UUID(int=0)}
FIRST_NAME: dict[str, Any] = {"after": ""}
# Another transaction has locked a row of the page, or makes a hold: a moment later it may be over.
MAX_TRIES = 20
PAUSE_SECONDS = 0.5


def through(
    page: Statement,
    what: str,
    after: dict[str, Any],
    action: str | None = None,
    target: str | None = None,
    **parameters: Any,
) -> int:
    """Run a statement on page after page until it returns no row. Returns how many rows it has changed.

    Each page is a transaction: whoever stops it loses one page's work, and a repeat does the rest. With an action, what
    a page has changed is noted in its transaction, and no hold is made while it runs.
    """
    changed, pages = 0, 0
    while found := _run_page(page, action, target, {**parameters, **after, "amount": ROWS}):
        after = {name: found[0][name] for name in after}
        changed += found[0]["changed"]
        pages += 1
        if pages % 20 == 0:
            click.echo(f"{what}: {pages * ROWS} rows looked at, {changed} changed", err=True)
    return changed


def _run_page(
    page: Statement, action: str | None, target: str | None, parameters: dict[str, Any]
) -> list[dict[str, Any]]:
    if action is None:
        return owner.run(page, **parameters)

    def work(run: Any) -> list[dict[str, Any]]:
        run(FREEZE_HOLDS)
        found: list[dict[str, Any]] = run(page, **parameters)
        if found and found[0]["changed"]:
            run(INSERT_ENTRY, **entry(action, target, rows=found[0]["changed"]))
        return found

    return retry_on_lock(work)


def retry_on_lock(work: Callable[[Run], T]) -> T:
    """Do work in one transaction, and again while others hold a lock that it needs. Raises Unavailable in the end."""
    for _ in range(MAX_TRIES - 1):
        try:
            return owner.transact(work)
        except Unavailable:
            time.sleep(PAUSE_SECONDS)
    return owner.transact(work)
