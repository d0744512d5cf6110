"""A process that keeps ready what the service needs, for as long as its standard input is open.

gunicorn's master starts it before the first worker. It has the embedded PostgreSQL run (unless WATCHPOST_DATABASE_URL
names another), applies pending migrations, makes a signing key if there is none, and says so with one line. A server
that dies is started again, and so is the keeper itself, by a process that does nothing else; once a day the partitions
of coming months are made. Master and workers hold the other end of its standard input: when the last of them is gone,
however it ended, the embedded server is stopped, and folders that were named as arguments are removed.
"""

from __future__ import annotations

import contextlib
import logging.config
import mmap
import os
import select
import shutil
import signal
import sys
import time

import psycopg

from app.auth import keys
from app.db import migrations, partitions
from app.db.database import migration_url, wait_until_up, writer_url
from app.dev import embedded
from app.telemetry.logging import config
from config.settings import SettingError, Settings, load

log = logging.getLogger("watchpost.keeper")

READY = "ready"
# How it ends.
DONE, WRONG_SETTING, NO_START = 0, 2, 3
# Between the end of one that was killed or failed and the next.
AGAIN_SECONDS = 1
# How often partitions are looked after, and again when that failed.
PARTITIONS_SECONDS = 24 * 3600
PARTITIONS_RETRY_SECONDS = 600
# Who has taken on another role can go back to their own.
SELECT_IS_SUPERUSER = "SELECT bool_or(rolsuper) FROM pg_roles WHERE rolname IN (current_user, session_user)"


class KeeperError(Exception):
    """The service must not start. The message says why, and what to do."""


def main() -> int:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Who sends these to a whole group of processes means the master; the end of standard input follows.
        signal.signal(number, signal.SIG_IGN)
    try:
        settings = load()
    except SettingError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return WRONG_SETTING
    logging.config.dictConfig(config(settings.log_level))
    # A byte that all forks share: 1 as soon as one of them has said that it is ready.
    ready = mmap.mmap(-1, 1)
    while child := os.fork():
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        # Who is killed has not put away what it kept; who fails where nobody needs it any more would fail again.
        if code == DONE or (code > 0 and (not ready[0] or _is_over(0))):
            # The one that ended may have left them to workers who have gone since.
            _remove_folders(ready)
            return code
        log.error("the keeper was killed or failed: another begins", extra={"fields": {"status": code}})
        time.sleep(AGAIN_SECONDS)
    return _keep(settings, ready)


def _keep(settings: Settings, ready: mmap.mmap) -> int:
    with contextlib.ExitStack() as stack:
        stack.callback(_remove_folders, ready)
        try:
            if not settings.database_url:
                stack.enter_context(embedded.running(settings.data_dir, patience=3))
            if not ready[0]:
                _prepare(settings)
        except (KeeperError, migrations.MigrationError, keys.SigningKeysUnavailable) as error:
            log.error("can't start: %s", error)
            return NO_START
        except Exception as error:
            log.error("can't start: %s", embedded.explain(error))
            return NO_START
        if not ready[0]:
            # The master may have been stopped meanwhile.
            with contextlib.suppress(BrokenPipeError):
                print(READY, flush=True)  # noqa: T201
            ready[0] = 1
        due = time.monotonic()
        while not _is_over(2):
            if time.monotonic() >= due:
                is_done = partitions.try_to_ensure(writer_url(settings))
                due = time.monotonic() + (PARTITIONS_SECONDS if is_done else PARTITIONS_RETRY_SECONDS)
            if not settings.database_url:
                try:
                    embedded.ensure_up(settings.data_dir)
                except Exception as error:
                    log.error("the database does not start: %s", embedded.explain(error))
    return DONE


def _prepare(settings: Settings) -> None:
    """Bring about what a service needs to start. Raises what keeps it from that."""
    wait_until_up(settings, lambda: _is_over(0))
    if settings.database_url:
        _refuse_superuser(settings.database_url)
    try:
        for name in migrations.apply(migration_url(settings)):
            log.info("applied migration", extra={"fields": {"migration": name}})
    except psycopg.errors.InsufficientPrivilege:
        # Whoever deploys in two steps migrates with another role. Until then /readyz says no.
        if migrations.is_behind(writer_url(settings)):
            log.error("this role may not migrate: run `flask --app wsgi migrate` as the owner")
    keys.prepare(settings)


def _remove_folders(ready: mmap.mmap) -> None:
    """Remove the folders that were named as arguments, unless workers go on that need them."""
    if not ready[0] or _is_over(0):
        for folder in sys.argv[1:]:
            shutil.rmtree(folder, ignore_errors=True)


def _refuse_superuser(url: str) -> None:
    """Raises KeeperError: what a superuser may do, a fault in the service could do too."""
    with psycopg.connect(url, autocommit=True) as connection:
        found = connection.execute(SELECT_IS_SUPERUSER).fetchone()
    if found and found[0]:
        raise KeeperError("WATCHPOST_DATABASE_URL names a superuser: use watchpost_writer, see config/roles.sql")


def _is_over(seconds: float) -> bool:
    """Whether master and workers are gone; waits so long for it."""
    return bool(select.select([sys.stdin], [], [], seconds)[0])


if __name__ == "__main__":
    sys.exit(main())
