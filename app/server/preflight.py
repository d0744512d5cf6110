"""What a worker checks when the service starts: mistakes that nobody should first see in an answer."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

import gevent

from app.auth import keys
from app.db.errors import DriverError
from app.db.startup import StartupError, explain, refuse_superuser
from app.db.urls import writer_url
from config.settings import Settings

log = logging.getLogger("watchpost.worker")

# gunicorn's WORKER_BOOT_ERROR: the master ends too.
NO_START = 3
RETRY_SECONDS = 1


def check(worker: Any) -> None:
    """End the service when it must not run so. A database that is away is waited for; meanwhile /readyz answers 503.

    worker: gunicorn's, before it serves.
    """
    settings: Settings = worker.wsgi.config["SETTINGS"]
    try:
        keys.check(settings)
        refuse_superuser(writer_url(settings))
    except (StartupError, keys.SigningKeysUnavailable) as error:
        _refuse(worker, error)
        sys.exit(NO_START)
    except DriverError as error:
        log.warning("the database can't be reached yet", extra={"fields": {"error": explain(error)}})
        gevent.spawn(_check_when_reached, worker, writer_url(settings))


def _check_when_reached(worker: Any, url: str) -> None:
    while True:
        gevent.sleep(RETRY_SECONDS)
        try:
            refuse_superuser(url)
            return
        except StartupError as error:
            _refuse(worker, error)
            os._exit(NO_START)
        except DriverError:
            continue


def _refuse(worker: Any, error: Exception) -> None:
    """Log why, and return in one worker only: the master fails when a second one ends so while it stops."""
    log.error("can't start: %s", error)
    if worker.age > 1:
        while worker.alive:
            gevent.sleep(0.1)
        os._exit(0)
