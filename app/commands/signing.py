"""The signing keys, for commands."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import click

from app.auth.keys import SigningKeys, SigningKeysUnavailable
from app.commands.shell import settings


@contextlib.contextmanager
def signing_keys() -> Iterator[SigningKeys]:
    """Yield the signing keys. Commands but `keys` make no file: it may be a typing error that it is missing."""
    try:
        yield SigningKeys(settings().signing_keys_path)
    except SigningKeysUnavailable as error:
        hint = "" if settings().signing_keys_path.exists() else "; `flask --app wsgi keys add` makes it"
        raise click.ClickException(f"{error}{hint}") from None
