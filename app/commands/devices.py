"""flask device list | show | revoke | restore | forget-key"""

from __future__ import annotations

from typing import Any

import click

from app.commands.audit import audited
from app.commands.erasure import erase_device
from app.commands.shell import NotFound, as_json, group, show, show_one, with_database
from app.db import Statement, reader, statement

SELECT_DEVICES = statement("devices/select_devices")
SELECT_DEVICE = statement("devices/select_device")
REVOKE_DEVICE = statement("devices/revoke_device")
RESTORE_DEVICE = statement("devices/restore_device")
FORGET_KEY = statement("devices/forget_key")

PAGE = 1000


@group()
def device() -> None:
    """Devices: the laptops that an agent runs on."""


@device.command("list")
@click.option("--limit", default=PAGE, show_default=True, type=click.IntRange(1, 1_000_000), help="Devices to list.")
@as_json
@with_database
def list_(limit: int, as_json: bool) -> None:
    """List devices, by id."""
    found = reader.run(SELECT_DEVICES, after="", amount=limit + 1)
    columns = ("device_id", "hostname", "registered_at", "last_heartbeat", "revoked_at", "archived_at", "has_key")
    show(found[:limit], columns, as_json)
    if len(found) > limit:
        click.echo(f"more than {limit} devices: see --limit", err=True)


@device.command("show")
@click.argument("device_id", metavar="ID")
@as_json
@with_database
def show_(device_id: str, as_json: bool) -> None:
    """Show what is stored about a device."""
    _show(reader.run(SELECT_DEVICE, device_id=device_id) if device_id.isprintable() else [], as_json)


@device.command()
@click.argument("device_id", metavar="ID")
@as_json
@with_database
def revoke(device_id: str, as_json: bool) -> None:
    """Revoke a device: its next request is refused."""
    _act("device.revoke", REVOKE_DEVICE, device_id, as_json)


@device.command()
@click.argument("device_id", metavar="ID")
@as_json
@with_database
def restore(device_id: str, as_json: bool) -> None:
    """Let a revoked device write again."""
    _act("device.restore", RESTORE_DEVICE, device_id, as_json)


@device.command("forget-key")
@click.argument("device_id", metavar="ID")
@as_json
@with_database
def forget_key(device_id: str, as_json: bool) -> None:
    """Let a device register once with a new key, after its laptop was reinstalled."""
    _act("device.forget_key", FORGET_KEY, device_id, as_json)


def _act(action: str, wanted: Statement, device_id: str, as_json: bool) -> None:
    _show(audited(action, device_id, wanted, device_id=device_id) if device_id.isprintable() else [], as_json)


def _show(found: list[dict[str, Any]], as_json: bool) -> None:
    if not found:
        raise NotFound("there is no such device")
    show_one(found[0], as_json)


device.add_command(erase_device)
