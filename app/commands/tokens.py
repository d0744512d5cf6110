"""flask token create"""

from __future__ import annotations

import uuid

import click

from app.api import scopes
from app.auth import auth
from app.auth.jws import is_name
from app.commands.audit import note
from app.commands.shell import Duration, as_json, show_one, with_database


@click.group()
def token() -> None:
    """Tokens of readers and operators."""


@token.command()
@click.option("--subject", required=True, help="Who holds it.")
@click.option("--scope", required=True, help="Scopes, separated by spaces: " + " ".join(scopes.READ))
@click.option("--expires-in", required=True, type=Duration(), help="Such as 8h or 30d.")
@as_json
@with_database
def create(subject: str, scope: str, expires_in: int, as_json: bool) -> None:
    """Mint an access token for reading and print it. It is shown this once.

    Scopes that write are not given away here: only a device's own key gets those.
    """
    asked = list(dict.fromkeys(scope.split()))
    unknown = [name for name in asked if name not in scopes.READ]
    if unknown or not asked:
        raise click.BadParameter("must be some of: " + " ".join(scopes.READ), param_hint="--scope")
    if not is_name(subject, 128):
        raise click.BadParameter("must be 1 to 128 printable ASCII characters", param_hint="--subject")
    auth.keys.ensure()
    token_id = str(uuid.uuid4())
    note("token.create", token_id, subject=subject, scope=" ".join(asked), expires_in=expires_in)
    made = auth.sign(subject, token_id, " ".join(asked), expires_in)
    if as_json:
        show_one({"token": made, "scope": " ".join(asked), "expires_in": expires_in}, as_json)
    else:
        click.echo(made)
