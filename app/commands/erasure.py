"""flask device erase, flask user erase: blank what a person's rows say.

Rows, keys, times and sites stay, so that every count is what it was, and a replay of what was erased is a conflict
that stores nothing.
"""

from __future__ import annotations

import hashlib

import click

from app.commands import pages
from app.commands.audit import note
from app.commands.shell import as_json, show_one, with_database
from app.db import owner, statement

ERASE_DEVICE = statement("erasure/erase_device")
ERASE_INSTANCES = statement("erasure/erase_instances")
ERASE_PROMPTS = statement("erasure/erase_prompts")
ERASE_EVENTS = statement("erasure/erase_events")
ERASE_STATUSES = statement("erasure/erase_statuses")
SELECT_HELD_PROMPTS = statement("erasure/select_held_prompts")
SELECT_HELD_EVENTS = statement("erasure/select_held_events")
SELECT_HELD_STATUSES = statement("erasure/select_held_statuses")
SELECT_DEVICE = statement("devices/select_device")
SELECT_HOLDS = statement("holds/select_holds")


@click.command("erase")
@click.argument("device_id", metavar="ID")
@click.option("--reason", required=True, help="Who asked for it, and why. Name no person: this is kept.")
@as_json
@with_database
def erase_device(device_id: str, reason: str, as_json: bool) -> None:
    """Blank what a device's rows say: prompts, addresses, titles, names, details.

    The device stays registered. Refused while any of its rows is under a legal hold.
    """
    if not device_id.isprintable() or not owner.run(SELECT_DEVICE, device_id=device_id):
        raise click.ClickException("there is no such device")
    whose = {"device_id": device_id, "username": None}
    # The device's own row has no time: a hold on the device holds it.
    _refuse_held(whose, any(hold["device_id"] == device_id for hold in _holds()))
    note("device.erase", device_id, reason=reason)
    owner.run(ERASE_DEVICE, device_id=device_id)
    erased = {
        "prompts": pages.through(ERASE_PROMPTS, "prompts", pages.FIRST_EVENT, **whose),
        "compliance_events": pages.through(ERASE_EVENTS, "compliance events", pages.FIRST_EVENT, **whose),
        "extension_status": pages.through(ERASE_STATUSES, "extension status", pages.FIRST_EVENT, device_id=device_id),
        "browser_instances": len(owner.run(ERASE_INSTANCES, **whose)),
    }
    note("device.erased", device_id, **erased)
    show_one(erased, as_json)


@click.group()
def user() -> None:
    """People, by the names that extensions report."""


@user.command("erase")
@click.argument("username", metavar="NAME")
@click.option("--reason", default="", help="Who asked for it, and why. Name no person: this is kept.")
@as_json
@with_database
def erase_user(username: str, reason: str, as_json: bool) -> None:
    """Blank what a person's rows say, on every device.

    That is: prompts with this username, compliance events whose user_context is the name or has it as a value, and
    browser profiles called so. The audit log keeps the SHA-256 of the name, so that who knows it can find the entry.
    Refused while any of these rows is under a legal hold.
    """
    if not username:
        raise click.BadParameter("must not be empty", param_hint="NAME")
    whose = {"device_id": None, "username": username}
    _refuse_held(whose, False)
    target = "sha256:" + hashlib.sha256(username.encode()).hexdigest()
    note("user.erase", target, reason=reason)
    erased = {
        "prompts": pages.through(ERASE_PROMPTS, "prompts", pages.FIRST_EVENT, **whose),
        "compliance_events": pages.through(ERASE_EVENTS, "compliance events", pages.FIRST_EVENT, **whose),
        "browser_instances": len(owner.run(ERASE_INSTANCES, **whose)),
    }
    note("user.erased", target, **erased)
    show_one(erased, as_json)


def _holds() -> list[dict[str, object]]:
    return [hold for hold in owner.run(SELECT_HOLDS) if hold["released_at"] is None]


def _refuse_held(whose: dict[str, str | None], is_held: bool) -> None:
    """Raises ClickException when a row to be erased is held. Statements look once more, row by row."""
    holds = _holds()
    if not holds:
        return
    held = pages.through(SELECT_HELD_PROMPTS, "holds on prompts", pages.FIRST_EVENT, **whose)
    held += pages.through(SELECT_HELD_EVENTS, "holds on compliance events", pages.FIRST_EVENT, **whose)
    if device_id := whose["device_id"]:
        held += pages.through(SELECT_HELD_STATUSES, "holds on extension status", pages.FIRST_EVENT, device_id=device_id)
    if held or is_held:
        names = ", ".join(str(hold["hold_id"]) for hold in holds)
        raise click.ClickException(f"{held} rows are under a legal hold, nothing was erased. In force: {names}")
