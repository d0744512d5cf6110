"""flask worker"""

from __future__ import annotations

import os
import sys

from app.commands.shell import as_json, command, settings, show_values, with_settings


@command()
@as_json
@with_settings
def worker(as_json: bool) -> None:
    """Run the background jobs until SIGTERM, then print those that were interrupted.

    One process on each host, beside gunicorn.
    """
    from app.jobs.worker import Worker

    show_values("interrupted", Worker(settings()).serve(), as_json)
    # The interpreter would wait for the thread of a job that was given up.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
