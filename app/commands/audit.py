"""flask audit list, and the entries of all other commands."""

from __future__ import annotations

import getpass
import json
import os
import uuid
from typing import Any

import click

from app.api.text import sanitize
from app.commands.shell import as_json, group, show, with_database
from app.db import Statement, owner, statement

INSERT_ENTRY = statement("audit/insert_entry")
SELECT_ENTRIES = statement("audit/select_entries")


def entry(action: str, target: str | None, **details: Any) -> dict[str, Any]:
    """The parameters of an entry. details: counts, reasons, limits; never a token, a key or a prompt."""
    return {
        "audit_id": uuid.uuid4(),
        "actor": _operator(),
        "action": action,
        "target": target,
        "details": json.dumps(details) if details else None,
    }


def note(action: str, target: str | None, **details: Any) -> None:
    """Record an action outside the database before it happens, so that no action goes without an entry."""
    owner.run(INSERT_ENTRY, **entry(action, target, **details))


def audited(action: str, target: str, wanted: Statement, **parameters: Any) -> list[dict[str, Any]]:
    """Run an operator's statement and record it, in one transaction. A statement that finds no row is not recorded."""
    noted = entry(action, target)

    def work(run: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = run(wanted, **parameters)
        if found:
            run(INSERT_ENTRY, **noted)
        return found

    return owner.transact(work)


def _operator() -> str:
    """Return the name of the operator: with sudo, of the user who called it."""
    try:
        return sanitize(os.environ.get("SUDO_USER") or getpass.getuser())
    except (KeyError, OSError):
        # The user of a container may have no name.
        return f"uid {os.getuid()}"


@group()
def audit() -> None:
    """The audit log: the actions of operators."""


@audit.command("list")
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1, 1_000_000), help="Entries to list.")
@as_json
@with_database
def list_(limit: int, as_json: bool) -> None:
    """List the actions of operators, newest first."""
    show(owner.run(SELECT_ENTRIES, amount=limit), ("at", "actor", "action", "target", "details"), as_json)
