"""flask token create"""

from __future__ import annotations

import uuid

import click

from app.api import scopes
from app.api.text import is_name
from app.auth import signing
from app.commands.audit import note
from app.commands.shell import Duration, as_json, group, settings, show_one, with_database
from app.commands.signing import signing_keys


@group()
def token() -> None:
    """Tokens of readers and operators."""


@token.command()
@click.option("--subject", required=True, help="The holder's name.")
@click.option("--scope", required=True, help="Scopes, separated by spaces: " + " ".join(scopes.READ))
@click.option("--expires-in", required=True, type=Duration(), help="Such as 8h or 30d.")
@as_json
@with_database
def create(subject: str, scope: str, expires_in: int, as_json: bool) -> None:
    """Mint an access token for reading and print it. It is never shown again.

    It can have no scope that writes: only a device gets those, for an assertion signed with its own key.
    """
    asked = list(dict.fromkeys(scope.split()))
    unknown = [name for name in asked if name not in scopes.READ]
    if unknown or not asked:
        raise click.BadParameter("must be some of: " + " ".join(scopes.READ), param_hint="--scope")
    if not is_name(subject, 128):
        raise click.BadParameter("must be 1 to 128 printable ASCII characters", param_hint="--subject")
    token_id = str(uuid.uuid4())
    with signing_keys() as keys:
        made = signing.access_token(keys, settings().issuer, subject, token_id, " ".join(asked), expires_in)
    note("token.create", token_id, subject=subject, scope=" ".join(asked), expires_in=expires_in)
    if as_json:
        show_one({"token": made, "scope": " ".join(asked), "expires_in": expires_in}, as_json)
    else:
        click.echo(made)
