"""flask hold create | list | release"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

import click

from app.api.text import is_name, sanitize
from app.commands.audit import audited
from app.commands.shell import NotFound, Words, as_json, group, show, show_one, with_database
from app.db import owner, statement

INSERT_HOLD = statement("holds/insert_hold")
RELEASE_HOLD = statement("holds/release_hold")
SELECT_DEVICE = statement("devices/select_device")
SELECT_HOLDS = statement("holds/select_holds")

DATE = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"])


@group()
def hold() -> None:
    """Legal holds: evidence that neither retention nor erasure touches."""


@hold.command()
@click.option("--device", "device_id", help="Only this device's rows.")
@click.option("--from", "since", type=DATE, help="Only rows of this time (UTC) or later.")
@click.option("--to", "until", type=DATE, help="Only rows before this time (UTC).")
@click.option("--future", is_flag=True, help="Take a device that is not known yet.")
@click.option("--reason", required=True, type=Words(), help="Who asked for it, and why.")
@as_json
@with_database
def create(
    device_id: str | None, since: datetime | None, until: datetime | None, future: bool, reason: str, as_json: bool
) -> None:
    """Hold the rows of a device, of a time, or of a device in a time, and print the hold's id."""
    if device_id is not None and not is_name(device_id, 128):
        # Such as a variable of the shell that was not set: the hold would be of nothing.
        raise click.BadParameter("must be 1 to 128 printable ASCII characters", param_hint="--device")
    if not (device_id or since or until):
        raise click.UsageError("say what to hold: --device, --from, --to")
    if since and until and since >= until:
        raise click.BadParameter("must be later than --from", param_hint="--to")
    if device_id and not future and not owner.run(SELECT_DEVICE, device_id=device_id):
        raise NotFound("there is no such device; with --future its reports will be held")
    hold_id = uuid.uuid4()
    parameters = {"hold_id": hold_id, "device_id": device_id, "reason": sanitize(reason)}
    audited("hold.create", str(hold_id), INSERT_HOLD, from_ms=_ms(since), to_ms=_ms(until), **parameters)
    if as_json:
        show_one({"hold_id": str(hold_id)}, as_json)
    else:
        click.echo(hold_id)


@hold.command("list")
@as_json
@with_database
def list_(as_json: bool) -> None:
    """List the holds, those in force first."""
    columns = ("hold_id", "device_id", "from_ms", "to_ms", "reason", "created_at", "released_at")
    show(owner.run(SELECT_HOLDS), columns, as_json)


@hold.command()
@click.argument("hold_id", metavar="ID", type=click.UUID)
@as_json
@with_database
def release(hold_id: uuid.UUID, as_json: bool) -> None:
    """Release a hold: retention and erasure may touch its rows again."""
    found = audited("hold.release", str(hold_id), RELEASE_HOLD, hold_id=hold_id)
    if not found:
        raise NotFound(f"there is no hold {hold_id}")
    show_one(found[0], as_json)


def _ms(time: datetime | None) -> int | None:
    return None if time is None else round(time.replace(tzinfo=UTC).timestamp() * 1000)
