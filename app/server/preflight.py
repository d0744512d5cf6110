"""What a worker checks when the service starts: mistakes that nobody should first see in an answer."""

from __future__ import annotations

import logging
import os
import sys

import gevent
import psycopg

from app.auth.keys import SigningKeys
from app.db.startup import StartupError, explain, refuse_superuser
from app.db.urls import writer_url
from config.settings import Settings

log = logging.getLogger("watchpost.worker")

# gunicorn's WORKER_BOOT_ERROR: the master ends too.
NO_START = 3
RETRY_SECONDS = 1


def check(settings: Settings) -> None:
    """End the service when it must not run so. A database that is away is waited for meanwhile /readyz answers 503."""
    try:
        _check_signing_keys(settings)
        refuse_superuser(writer_url(settings))
    except StartupError as error:
        _refuse(error)
        sys.exit(NO_START)
    except psycopg.Error as error:
        log.warning("the database can't be reached yet", extra={"fields": {"error": explain(error)}})
        gevent.spawn(_check_when_reached, settings)


def _check_when_reached(settings: Settings) -> None:
    while True:
        gevent.sleep(RETRY_SECONDS)
        try:
            refuse_superuser(writer_url(settings))
            return
        except StartupError as error:
            _refuse(error)
            os._exit(NO_START)
        except psycopg.Error:
            continue


def _check_signing_keys(settings: Settings) -> None:
    path = settings.signing_keys_path
    try:
        usable = len(SigningKeys(path).verifying.keys)
    except FileNotFoundError:
        raise StartupError(
            f"there is no signing key in {path}: see WATCHPOST_SIGNING_KEYS, or make one with "
            "`flask --app wsgi keys rotate`"
        ) from None
    except OSError as error:
        raise StartupError(f"the signing keys can't be read: {explain(error)}") from None
    except Exception:
        # Its text may quote a key.
        usable = 0
    if not usable:
        raise StartupError(f"{path} holds no signing keys that can be read: put back a copy")


def _refuse(error: StartupError) -> None:
    log.error("can't start: %s", error)
