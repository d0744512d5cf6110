"""The worker process: runs the background jobs of JOBS, each on one host at a time.

Every host may run one; a job that another host is busy with is left to it. A job is interrupted at any time without
harm: it works in short transactions and its next run goes on.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import NamedTuple

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler

from app.db import partitions
from app.db.advisory_locks import try_lock_at
from app.db.errors import DriverError
from app.db.startup import explain
from app.db.urls import writer_url
from app.jobs import assertions
from config.settings import Settings

log = logging.getLogger("watchpost.jobs")


class Job(NamedTuple):
    """Some background work.

    run: gets the database's URL and a function that says whether it must stop; returns whether all was done. It may
    raise DriverError. seconds: from one run to the next. retry_seconds: the same after a run that did not do all.
    """

    name: str
    run: Callable[[str, Callable[[], bool]], bool]
    seconds: float
    retry_seconds: float


def _ensure_partitions(url: str, is_stopping: Callable[[], bool]) -> bool:
    return partitions.try_to_ensure(url)


def _delete_expired_assertions(url: str, is_stopping: Callable[[], bool]) -> bool:
    assertions.delete_expired(url, is_stopping)
    return True


JOBS = (
    Job("ensure partitions", _ensure_partitions, 24 * 3600, 600),
    Job("delete expired assertions", _delete_expired_assertions, 60, 60),
)


class Worker:
    """Runs jobs until it is stopped."""

    def __init__(self, settings: Settings, jobs: tuple[Job, ...] = JOBS) -> None:
        self._url = writer_url(settings)
        self._graceful_seconds = settings.graceful_seconds
        self._stop = threading.Event()
        self._running: set[str] = set()
        self._scheduler = BackgroundScheduler(
            executors={"default": ThreadPoolExecutor(max(1, len(jobs)))},
            # A run that is late is made up for once, however late it is.
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
        )
        for job in jobs:
            self._scheduler.add_job(
                self._run,
                "interval",
                (job,),
                id=job.name,
                seconds=job.seconds,
                next_run_time=datetime.now().astimezone(),
            )

    def serve(self) -> list[str]:
        """Run jobs until SIGTERM or SIGINT, and return when those that run have ended. Returns those that have not."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stop.set())
        self._scheduler.start()
        log.info("the worker runs", extra={"fields": {"jobs": [job.id for job in self._scheduler.get_jobs()]}})
        self._stop.wait()
        self._scheduler.shutdown(wait=False)
        deadline = time.monotonic() + self._graceful_seconds
        while self._running and time.monotonic() < deadline:
            time.sleep(0.05)
        interrupted = sorted(self._running)
        log.info("the worker stops", extra={"fields": {"interrupted": interrupted}})
        return interrupted

    def _run(self, job: Job) -> None:
        self._running.add(job.name)
        try:
            is_done = self._run_exclusively(job)
        finally:
            self._running.discard(job.name)
        if not is_done and not self._stop.is_set():
            at = datetime.now().astimezone() + timedelta(seconds=job.retry_seconds)
            self._scheduler.modify_job(job.name, next_run_time=at)

    def _run_exclusively(self, job: Job) -> bool:
        """Run a job unless another process does; whether it need not be tried again soon."""
        try:
            with try_lock_at(self._url, job.name) as is_locked:
                return not is_locked or job.run(self._url, self._stop.is_set)
        except DriverError as error:
            log.warning("a job failed", extra={"fields": {"job": job.name, "error": explain(error)}})
        except Exception as error:
            log.error("a job failed", extra={"fields": {"job": job.name}}, exc_info=error)
        return False
