"""flask spec"""

from __future__ import annotations

from pathlib import Path

import click
from flask import current_app
from flask.cli import with_appcontext

from app.api.openapi import as_yaml

FILE = Path(__file__).resolve().parents[2] / "docs" / "openapi.yaml"


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; fail when the file differs from the code.")
@with_appcontext
def spec(check: bool) -> None:
    """Write docs/openapi.yaml from the code."""
    text = as_yaml(current_app)
    if not check:
        FILE.write_text(text, encoding="utf-8")
    elif not FILE.exists() or FILE.read_text(encoding="utf-8") != text:
        raise click.ClickException("docs/openapi.yaml differs from the code: run `make spec`")
