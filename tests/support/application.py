"""The application under test, with the operator's commands: `app.test_cli_runner()` runs them in this process."""

from __future__ import annotations

from app import application
from app.application import Watchpost
from app.commands import Commands
from config.settings import Settings


def create_app(settings: Settings | None = None) -> Watchpost:
    app = application.create_app(settings)
    app.cli = Commands(name=app.name)
    return app
