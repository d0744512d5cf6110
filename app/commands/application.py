"""An application with the commands alone: it has no routes, so that a command starts quickly.

It loads settings and knows a database when a command asks for them (app/commands/shell.py).
"""

from __future__ import annotations

import logging

from flask import Flask
from flask.cli import ScriptInfo

from app.commands import Commands


def create_app() -> Flask:
    app = Flask("watchpost", static_folder=None)
    app.cli = Commands(name="watchpost", help="Operate Watchpost.")
    return app


def main() -> None:
    """Run the command of this process's arguments."""
    logging.captureWarnings(True)
    app = create_app()
    app.cli.main(obj=ScriptInfo(create_app=lambda: app), prog_name="python -m app")
