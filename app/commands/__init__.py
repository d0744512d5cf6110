"""The operator's command line: `flask --app wsgi COMMAND`, or `python -m app COMMAND`.

Each command prints just the thing on standard output: a table for people, JSON with `--json`. Errors go to standard
error; the exit code is 0 when it worked, 1 when it did not, 2 when the command was called wrongly.
"""

from __future__ import annotations

import importlib

import click
from flask.cli import AppGroup

# The name of each command -> its module and its name there, so that one command does not load all others.
COMMANDS = {
    "audit": "audit:audit",
    "browser": "browsers:browser",
    "device": "devices:device",
    "enrollment": "enrollments:enrollment",
    "hold": "holds:hold",
    "keys": "keys:keys",
    "migrate": "database:migrate",
    "partitions": "partitions:partitions",
    "retention": "retention:retention",
    "review": "review:review",
    "spec": "spec:spec",
    "token": "tokens:token",
    "user": "erasure:user",
    "worker": "worker:worker",
}


class Commands(AppGroup):
    """All commands, each imported when it is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*COMMANDS, *super().list_commands(ctx)})

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        return load(name) if name in COMMANDS else super().get_command(ctx, name)


def load(name: str) -> click.Command:
    """Import a command of COMMANDS."""
    module, _, attribute = COMMANDS[name].partition(":")
    found: click.Command = getattr(importlib.import_module(f"app.commands.{module}"), attribute)
    return found
