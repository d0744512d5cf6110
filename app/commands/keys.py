"""flask keys list | rotate | remove"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import click
from flask.cli import with_appcontext

from app.auth import auth
from app.commands.audit import note
from app.commands.shell import as_json, show, show_one, with_database


@click.group()
def keys() -> None:
    """The service's signing keys: the first signs, all verify."""


@keys.command("list")
@as_json
@with_appcontext
def list_(as_json: bool) -> None:
    """List the signing keys, the one that signs first."""
    auth.keys.ensure()
    rows: list[dict[str, Any]] = [
        {**key, "created_at": datetime.fromtimestamp(key["iat"], UTC) if key["iat"] else None, "signs": index == 0}
        for index, key in enumerate(auth.keys.listed())
    ]
    show(rows, ("kid", "alg", "created_at", "signs"), as_json)


@keys.command()
@as_json
@with_database
def rotate(as_json: bool) -> None:
    """Make a new signing key. Tokens signed by the others stay valid."""
    note("keys.rotate", None)
    kid = auth.keys.rotate()
    if as_json:
        show_one({"kid": kid}, as_json)
    else:
        click.echo(kid)


# One kid in 64 begins with a hyphen.
@keys.command(context_settings={"ignore_unknown_options": True})
@click.argument("kid", metavar="KID")
@with_database
def remove(kid: str) -> None:
    """Remove a key: whatever it signed is refused from now on."""
    there = [key["kid"] for key in auth.keys.listed()]
    if kid not in there:
        raise click.ClickException("there is no such key")
    if kid == there[0]:
        raise click.ClickException("this key signs: rotate first")
    note("keys.remove", kid)
    auth.keys.remove(kid)
    click.echo(kid)
