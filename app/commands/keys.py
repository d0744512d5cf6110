"""flask keys list | rotate | add | promote | remove"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import click

from app.commands.audit import note
from app.commands.shell import NotFound, as_json, group, settings, show, show_value, with_database, with_settings
from app.commands.signing import signing_keys


@group()
def keys() -> None:
    """The service's signing keys: the first signs, all verify."""


@keys.command("list")
@as_json
@with_settings
def list_(as_json: bool) -> None:
    """List the signing keys, the one that signs first."""
    with signing_keys() as found:
        rows: list[dict[str, Any]] = [
            {**key, "created_at": datetime.fromtimestamp(key["iat"], UTC) if key["iat"] else None, "signs": index == 0}
            for index, key in enumerate(found.listed())
        ]
    show(rows, ("kid", "alg", "created_at", "signs"), as_json)


@keys.command()
@as_json
@with_database
def rotate(as_json: bool) -> None:
    """Make a new key that signs at once. Tokens signed by the others stay valid.

    With several hosts use `add`, copy the file to each host, then `promote`.
    """
    with signing_keys() as found:
        if settings().signing_keys:
            # A missing file may be a typing error.
            found.listed()
        note("keys.rotate", None)
        kid = found.rotate()
    show_value("kid", kid, as_json)


@keys.command()
@as_json
@with_database
def add(as_json: bool) -> None:
    """Publish a new key that does not sign yet, so that every host knows it before `promote`.

    If there is no signing-key file, it is made with this key.
    """
    with signing_keys() as found:
        if found.path.exists():
            found.listed()
        elif not found.path.parent.is_dir() and settings().signing_keys:
            raise click.ClickException(f"there is no folder {found.path.parent}: see WATCHPOST_SIGNING_KEYS")
        note("keys.add", None)
        kid = found.add()
    show_value("kid", kid, as_json)


@keys.command()
@click.argument("kid", metavar="KID")
@as_json
@with_database
def promote(kid: str, as_json: bool) -> None:
    """Let a key sign from now on. Tokens signed by the others stay valid."""
    with signing_keys() as found:
        _check(kid, [key["kid"] for key in found.listed()])
        note("keys.promote", kid)
        found.promote(kid)
    show_value("kid", kid, as_json)


@keys.command()
@click.argument("kid", metavar="KID")
@as_json
@with_database
def remove(kid: str, as_json: bool) -> None:
    """Remove a key: every token that it signed is refused from now on."""
    with signing_keys() as found:
        known = [key["kid"] for key in found.listed()]
        _check(kid, known)
        if kid == known[0]:
            raise click.ClickException("this key signs: rotate, or promote another one, first")
        note("keys.remove", kid)
        found.remove(kid)
    show_value("kid", kid, as_json)


def _check(kid: str, known: list[str]) -> None:
    if kid not in known:
        raise NotFound("there is no such key")
