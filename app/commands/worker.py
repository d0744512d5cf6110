"""flask worker"""

from __future__ import annotations

import os
import sys

from app.commands.shell import command, settings, with_settings


@command()
@with_settings
def worker() -> None:
    """Run the background jobs until SIGTERM. One process on each host, beside gunicorn."""
    from app.jobs.worker import Worker

    Worker(settings()).serve()
    # The interpreter would wait for the thread of a job that was given up.
    sys.stderr.flush()
    os._exit(0)
