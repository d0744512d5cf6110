"""flask spec"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from app.commands.shell import as_json, command, settings, show_one, with_settings
from config.settings import Settings, variable

DOCS = Path(__file__).resolve().parents[2] / "docs"

CONFIGURATION = """# Configuration

A setting comes from the environment, else from the file that `WATCHPOST_CONFIG` names, else from
`/etc/watchpost/watchpost.env` if it can be read. It is read once, when a process starts. A value that cannot be used
stops the start; the message names the variable. An unknown `WATCHPOST_` variable is named in a warning.

The defaults suit one laptop. For a fleet, look at these first:

- `WATCHPOST_ISSUER`, `WATCHPOST_DATABASE_URL`, `WATCHPOST_SIGNING_KEYS` and `WATCHPOST_PROXIES`, on every host.
- `WATCHPOST_HEARTBEAT_SECONDS`: the number of devices divided by this is the number of heartbeats a second.
- `WATCHPOST_WORKERS` and `WATCHPOST_POOL_SIZE`: their product is the highest number of database connections of a host.

`make spec` writes this page from `config/settings.py`.

| variable | default | unit | meaning |
|---|---|---|---|
"""


@command()
@click.option("--check", is_flag=True, help="Write nothing; fail when a file differs from the code.")
@as_json
@with_settings
def spec(check: bool, as_json: bool) -> None:
    """Write docs/openapi.yaml and docs/configuration.md from the code."""
    from app.api.openapi import as_yaml
    from app.application import create_app

    changed = []
    for name, text in (("openapi.yaml", as_yaml(create_app(settings()))), ("configuration.md", configuration())):
        file = DOCS / name
        if file.exists() and file.read_text(encoding="utf-8") == text:
            continue
        if check:
            raise click.ClickException(f"docs/{name} differs from the code: run `make spec`")
        file.write_text(text, encoding="utf-8")
        changed.append(f"docs/{name}")
    if as_json:
        show_one({"changed": changed}, as_json)


def configuration() -> str:
    """The page of all settings, as Markdown: one row for each variable."""
    rows = []
    for field in dataclasses.fields(Settings):
        default = str(field.default).lower() if isinstance(field.default, bool) else str(field.default)
        shown = f"`{default}`" if default else "empty"
        cells = (f"`{variable(field)}`", shown, field.metadata["unit"] or "-", field.metadata["meaning"])
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n")
    return CONFIGURATION + "".join(rows)
