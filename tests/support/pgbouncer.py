"""A real PgBouncer between the application under test and its server, set up by config/pgbouncer.ini."""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from app.dev import programs

ROOT = Path(__file__).resolve().parents[2]

PORT = 6432
USERS = ("postgres", "watchpost_owner", "watchpost_writer", "watchpost_reader")


def url(database_url: str, sockets: str) -> str:
    """The same database, through the PgBouncer whose socket is in this folder."""
    given = psycopg.conninfo.conninfo_to_dict(database_url)
    return f"postgresql://{given['user']}@/{given['dbname']}?host={sockets}&port={PORT}"


@contextmanager
def running(server: str) -> Iterator[str]:
    """Have a PgBouncer run before the server with its socket in this folder; the value is the folder of its own."""
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    assert program is not None, "PgBouncer is missing: apt-get install pgbouncer"
    home = Path(tempfile.mkdtemp(prefix="wp-pgbouncer-")) / "pgbouncer"
    home.parent.chmod(0o755)
    programs.own_folder(home)
    user = programs.server_user()
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(ROOT / "config" / "pgbouncer.ini")
    # What differs here: any database of the server, sockets instead of ports, nobody has a password.
    settings["databases"] = {"*": f"host={server}"}
    settings["pgbouncer"].update(
        {
            "listen_addr": "",
            "listen_port": str(PORT),
            "unix_socket_dir": str(home),
            "unix_socket_mode": "0700",
            "auth_type": "trust",
            "auth_file": str(home / "userlist.txt"),
            "logfile": str(home / "pgbouncer.log"),
        }
    )
    with (home / "pgbouncer.ini").open("w") as file:
        settings.write(file)
    (home / "userlist.txt").write_text("".join(f'"{name}" ""\n' for name in USERS))
    for path in home.iterdir():
        path.chmod(0o644)
    process = subprocess.Popen(
        [program, "--quiet", home / "pgbouncer.ini"], user=user, group=user, extra_groups=[] if user else None, cwd="/"
    )
    try:
        deadline = time.monotonic() + 60
        while not (home / f".s.PGSQL.{PORT}").exists():
            assert process.poll() is None, (home / "pgbouncer.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield str(home)
    finally:
        process.terminate()
        process.wait(60)
        shutil.rmtree(home.parent)
