"""flask worker"""

from __future__ import annotations

import os
import sys

import click
from flask import current_app
from flask.cli import with_appcontext


@click.command()
@with_appcontext
def worker() -> None:
    """Run the background jobs until SIGTERM. One process on each host, beside gunicorn."""
    # Only here: no other command needs the scheduler.
    from app.jobs.worker import Worker

    Worker(current_app.config["SETTINGS"]).serve()
    # The interpreter would wait for the thread of a job that was given up.
    sys.stderr.flush()
    os._exit(0)
