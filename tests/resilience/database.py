"""A database that is slow, full, read-only or silent: short answers, no pile-up, and recovery by itself."""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import psutil
import psycopg

from tests.resilience import Finding, Plan
from tests.resilience.machine import Machine, machine
from tests.support.fleet import Fleet, Tally

# The service's time limits here, in seconds, and what follows of them for one request: a wait in the queue (a wait for
# a connection and two statements), then the same once more for its own set, with the silence of a second after each.
LIMITS = {"pool_wait_seconds": 2, "statement_timeout_ms": 1000}
LONGEST = 12
# Seconds from the database's return to readiness and to a stored row.
RECOVERY = 5
# What a worker may grow by while it waits: a connection that waits is a greenlet, no thread.
MOST_THREADS = 4
MOST_MEMORY = 32 * 2**20
# A line for each request that waits.
DEVICES, LINES = 20, 5

Trouble = Callable[[Machine], AbstractContextManager[None]]


def run(plan: Plan) -> Iterator[Finding]:
    with machine(plan.folder / "machine", **LIMITS) as computer:
        fleet = Fleet(computer.service, DEVICES, LINES)
        for what, trouble, seconds in (
            ("a table is locked", _locked, 4),
            ("statements take too long", _slow, 4),
            ("all connections are taken", _full_of_connections, 4),
            ("read-only, as after a failover", _read_only, 4),
            # Longer than it takes to find out that nothing answers.
            ("silent: SIGSTOP of all of PostgreSQL", _silent, 8),
        ):
            yield _rounds(what, plan, computer, fleet, trouble, seconds)
    yield _disk_full(plan)


@contextlib.contextmanager
def _locked(computer: Machine) -> Iterator[None]:
    with psycopg.connect(computer.url) as blocker:
        blocker.execute("LOCK TABLE prompts IN ACCESS EXCLUSIVE MODE")
        yield
        blocker.rollback()


@contextlib.contextmanager
def _slow(computer: Machine) -> Iterator[None]:
    computer.ask(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(30); RETURN NULL; END'"
    )
    computer.ask("CREATE TRIGGER slow BEFORE INSERT ON prompts FOR EACH STATEMENT EXECUTE FUNCTION slow()")
    try:
        yield
    finally:
        computer.ask("DROP FUNCTION slow CASCADE")


@contextlib.contextmanager
def _full_of_connections(computer: Machine) -> Iterator[None]:
    ours = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'watchpost_writer'"
    reader = computer.url.replace("postgres@", "watchpost_reader@")
    with psycopg.connect(computer.url, autocommit=True) as admin, contextlib.ExitStack() as stack:
        quiet = 0
        while quiet < 3:
            with contextlib.suppress(psycopg.OperationalError):
                while True:
                    stack.enter_context(contextlib.closing(psycopg.connect(reader)))
            # Those of the service are in use as well: whoever is faster gets what becomes free.
            if admin.execute(ours).fetchall():
                quiet = 0
            else:
                # One that is just being made is in nobody's list yet.
                quiet += 1
                time.sleep(0.1)
        yield


@contextlib.contextmanager
def _read_only(computer: Machine) -> Iterator[None]:
    computer.set(default_transaction_read_only="on")
    try:
        yield
    finally:
        # Not as `set` does: the server waits for nobody.
        with psycopg.connect(computer.url, autocommit=True) as admin:
            admin.execute("ALTER SYSTEM RESET default_transaction_read_only")
            admin.execute("SELECT pg_reload_conf()")


@contextlib.contextmanager
def _silent(computer: Machine) -> Iterator[None]:
    stopped = computer.servers()
    for process in stopped:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.suspend()
    try:
        yield
    finally:
        for process in stopped:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()


class Watch(threading.Thread):
    """Asks for /livez and /readyz all the time, and looks at the workers' memory and threads."""

    def __init__(self, computer: Machine) -> None:
        super().__init__(daemon=True)
        self.computer = computer
        self.alive = self.dead = self.ready = self.unready = 0
        self.memory = self.threads = 0
        self.is_ready = False
        self.is_over = threading.Event()
        self._workers = computer.workers()
        self._memory = max(worker.memory_info().rss for worker in self._workers)
        self._threads = max(worker.num_threads() for worker in self._workers)

    def run(self) -> None:
        while not self.is_over.wait(0.05):
            alive = self._status("/livez") == 200
            self.is_ready = self._status("/readyz") == 200
            self.alive, self.dead = self.alive + alive, self.dead + (not alive)
            self.ready, self.unready = self.ready + self.is_ready, self.unready + (not self.is_ready)
            for worker in self._workers:
                with contextlib.suppress(psutil.NoSuchProcess):
                    self.memory = max(self.memory, worker.memory_info().rss - self._memory)
                    self.threads = max(self.threads, worker.num_threads() - self._threads)

    def _status(self, path: str) -> int:
        with contextlib.suppress(OSError):
            return self.computer.service.get(path).status
        return 0


@contextlib.contextmanager
def _watching(computer: Machine) -> Iterator[Watch]:
    watch = Watch(computer)
    watch.start()
    try:
        yield watch
    finally:
        watch.is_over.set()
        watch.join(60)


def _rounds(what: str, plan: Plan, computer: Machine, fleet: Fleet, trouble: Trouble, seconds: float = 4) -> Finding:
    before, slowest, red = len(fleet.acknowledged), 0.0, 0
    fleet.fresh_tally()
    with _watching(computer) as watch, fleet.reporting():
        for _ in range(plan.rounds):
            fleet.until(plan.rows // 2)
            unready = watch.unready
            with trouble(computer):
                time.sleep(seconds)
            began = time.monotonic()
            red += watch.unready > unready
            fleet.until(1, "prompt")
            while not watch.is_ready:
                assert time.monotonic() < began + 60, "not ready again"
                time.sleep(0.01)
            slowest = max(slowest, time.monotonic() - began)
        fleet.until(plan.rows // 2)
    verdict, tally = fleet.compare(computer.url), fleet.tally
    count = f"{plan.rounds} rounds of {seconds:g} s, {len(fleet.acknowledged) - before:,} rows acknowledged"
    result = (
        f"{verdict}; 503 {tally.answers[503]}, longest wait {tally.longest:.1f} s, back in {slowest:.1f} s; "
        f"livez failed {watch.dead} of {watch.dead + watch.alive}, readyz red in {red} of {plan.rounds}; "
        f"workers +{watch.memory / 2**20:.0f} MiB, +{watch.threads} threads"
    )
    if tally.wrong or tally.broken:
        result += f"; {dict(tally.broken)} {tally.wrong[:3]}"
    return Finding(
        what,
        count,
        result,
        verdict.is_exact
        and _is_bounded(tally)
        and slowest < RECOVERY
        and not watch.dead
        and red == plan.rounds
        and watch.memory < MOST_MEMORY
        and watch.threads <= MOST_THREADS,
    )


def _is_bounded(tally: Tally) -> bool:
    """Nothing but 2xx and 503 came back, all in time, and 503 did come."""
    return not tally.wrong and not tally.broken and tally.longest < LONGEST and tally.answers[503] > 0


def _disk_full(plan: Plan) -> Finding:
    """PostgreSQL on a file system of its own that is filled to the last block."""
    what = "the disk is full"
    folder = plan.folder / "disk"
    disk = folder / "data"
    disk.mkdir(parents=True, mode=0o755)
    folder.chmod(0o755)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=320m,mode=0755", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        return Finding(what, "-", "only root may mount a small file system", None)
    try:
        computer = Machine(folder, **LIMITS)
        try:
            return _rounds(what, plan, computer, Fleet(computer.service, DEVICES, LINES), _full)
        finally:
            computer.kill_what_is_left()
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=False)


@contextlib.contextmanager
def _full(computer: Machine) -> Iterator[None]:
    ballast = computer.folder / "data" / "ballast"
    with ballast.open("wb") as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(2**20))
            file.flush()
    try:
        yield
    finally:
        ballast.unlink()
