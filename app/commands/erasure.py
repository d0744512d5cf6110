"""flask device erase, flask user erase: blank what a person's rows say.

Rows, keys, times and sites stay, so that every count is what it was, and a replay of what was erased is a conflict
that stores nothing.
"""

from __future__ import annotations

import hashlib
import sys

import click

from app.api.text import sanitize
from app.commands import pages
from app.commands.audit import INSERT_ENTRY, entry, note
from app.commands.shell import NotFound, Words, as_json, command, group, show_one, with_database
from app.db import Statement, owner, statement

ERASE_DEVICE = statement("erasure/erase_device")
ERASE_INSTANCES = statement("erasure/erase_instances")
SELECT_TABLES = statement("retention/select_tables")
SELECT_HELD_INSTANCES = statement("erasure/select_held_instances")
COUNT_HELD = statement("erasure/count_held")
SELECT_DEVICE = statement("devices/select_device")
SELECT_HOLDS = statement("holds/select_holds")


@command("erase")
@click.argument("device_id", metavar="ID")
@click.option("--reason", required=True, type=Words(), help="Who asked for it, and why. Name no person: this is kept.")
@as_json
@with_database
def erase_device(device_id: str, reason: str, as_json: bool) -> None:
    """Blank what a device's rows say: prompts, addresses, titles, names, details.

    The device stays registered: unless it is revoked, its next heartbeat says again what it is called. Refused while
    any of its rows is under a legal hold.
    """
    if not device_id.isprintable() or not owner.run(SELECT_DEVICE, device_id=device_id):
        raise NotFound("there is no such device")
    _erase("device", device_id, reason, {"device_id": device_id, "username": None}, as_json)


@group()
def user() -> None:
    """People, by the names that extensions report."""


def _name(context: click.Context, parameter: click.Parameter, name: str) -> str:
    """The name itself; for `-` what standard input says, so that neither a list of processes nor a history shows it."""
    if name == "-" and sys.stdin.isatty():
        name = click.prompt("Name", err=True)
    elif name == "-":
        name = sys.stdin.buffer.read().decode(errors="surrogateescape").removesuffix("\n").removesuffix("\r")
        if "\n" in name:
            raise click.BadParameter("must be one line")
    if not name:
        raise click.BadParameter("must not be empty")
    if name != sanitize(name):
        raise click.BadParameter("must be UTF-8, without NUL")
    return name


@user.command("erase")
@click.argument("username", metavar="NAME", callback=_name)
@click.option("--reason", required=True, type=Words(), help="Who asked for it, and why. Name no person: this is kept.")
@as_json
@with_database
def erase_user(username: str, reason: str, as_json: bool) -> None:
    """Blank what a person's rows say, on every device.

    That is: prompts with this username or profile name, browser profiles called so or in a folder called so, and
    whatever reports have the name as a value in their JSON. It must be the same to the letter. The audit log keeps the
    SHA-256 of the name, so that who knows it can find the entry. What names the laptop is erased by `device erase`.
    Refused while any of these rows is under a legal hold.

    With - for NAME it is read from standard input, so that no list of processes shows it.
    """
    target = "sha256:" + hashlib.sha256(username.encode()).hexdigest()
    _erase("user", target, reason, {"device_id": None, "username": username}, as_json)


def _event_statements() -> dict[str, Statement]:
    """By event table: what is blanked differs, who is meant does not (the function is_about)."""
    tables = [row["table_name"] for row in owner.run(SELECT_TABLES)]
    return {table: statement(f"erasure/erase_{table}") for table in tables}


def _erase(kind: str, target: str, reason: str, whose: dict[str, str | None], as_json: bool) -> None:
    _refuse_held(whose)
    begun, blanked = entry(f"{kind}.erase", target, reason=sanitize(reason)), entry("browser_instances.erase", target)

    def things(run: pages.Run) -> int:
        """What has no time of its own."""
        run(pages.FREEZE_HOLDS)
        if whose["device_id"] and not run(ERASE_DEVICE, device_id=whose["device_id"]):
            raise click.ClickException("a legal hold was made meanwhile, nothing was erased")
        run(INSERT_ENTRY, **begun)
        instances = run(ERASE_INSTANCES, **whose)
        if instances:
            run(INSERT_ENTRY, **blanked)
        return len(instances)

    instances = pages.retry_on_lock(things)
    erased = {
        table: pages.through(page, table, pages.FIRST_EVENT, f"{table}.erase", target, **whose)
        for table, page in _event_statements().items()
    }
    erased["browser_instances"] = instances
    note(f"{kind}.erased", target, **erased)
    show_one(erased, as_json)


def _refuse_held(whose: dict[str, str | None]) -> None:
    """Raises ClickException when a row to be erased is held. Statements look once more, row by row."""
    holds = [hold for hold in owner.run(SELECT_HOLDS) if hold["released_at"] is None]
    if not holds:
        return
    # The device's own row has no time: any hold of the device holds it.
    held = sum(hold["device_id"] == whose["device_id"] for hold in holds if hold["device_id"])
    held += len(owner.run(SELECT_HELD_INSTANCES, **whose))
    for table in _event_statements():
        held += pages.through(COUNT_HELD, f"holds on {table}", pages.FIRST_EVENT, table_name=table, **whose)
    if held:
        names = ", ".join(str(hold["hold_id"]) for hold in holds)
        raise click.ClickException(f"{held} rows are under a legal hold, nothing was erased. In force: {names}")
