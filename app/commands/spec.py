"""flask spec"""

from __future__ import annotations

from pathlib import Path

import click

from app.commands.shell import as_json, command, settings, show_one, with_settings

FILE = Path(__file__).resolve().parents[2] / "docs" / "openapi.yaml"


@command()
@click.option("--check", is_flag=True, help="Write nothing; fail when the file differs from the code.")
@as_json
@with_settings
def spec(check: bool, as_json: bool) -> None:
    """Write docs/openapi.yaml from the code."""
    from app.api.openapi import as_yaml
    from app.application import create_app

    text = as_yaml(create_app(settings()))
    is_current = FILE.exists() and FILE.read_text(encoding="utf-8") == text
    if check and not is_current:
        raise click.ClickException("docs/openapi.yaml differs from the code: run `make spec`")
    if not check:
        FILE.write_text(text, encoding="utf-8")
    if as_json:
        show_one({"file": str(FILE), "changed": not is_current}, as_json)
