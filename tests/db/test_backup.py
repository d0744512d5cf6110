"""Backup and restore: the commands of docs/backup.md, run as they are, and the service on the restored database."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from app.db import migrations
from app.db.statements import statement
from app.dev import embedded, programs
from config.settings import load
from tests import demo
from tests.support.seed import fill
from tests.support.service import ROOT, Service, free_port, prompt, registered, serving, token_of

# The machine does not crash meanwhile.
QUICK = "fsync = off\nautovacuum = off\n"


PAGE = (ROOT / "docs" / "backup.md").read_text(encoding="utf-8")
# Debian's layout: programs and configuration apart from the data, clusters made by postgresql-common.
DEBIAN = Path("/usr/lib/postgresql/15/bin")
CREATE = Path("/usr/bin/pg_createcluster")


def run_block(name: str, user: str | None, programs: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a block of the page as a system user, or as the user of the tests. Returns the exit code and the output."""
    block = re.search(rf"```sh\n# {name}\n(.*?)```", PAGE, re.DOTALL)
    assert block is not None
    # Files, not pipes: a server that is started would hold a pipe open for as long as it lives.
    with tempfile.TemporaryFile("w+") as output:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block[1]],
            cwd="/" if user else ROOT,
            env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "LC_ALL": "C.UTF-8", **variables},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            user=user,
            group=pwd.getpwnam(user).pw_gid if user else None,
            extra_groups=[] if user else None,
            check=False,
            timeout=120,
        )
        output.seek(0)
        return subprocess.CompletedProcess(done.args, done.returncode, output.read())


class Operator:
    """Who runs the blocks on a server's host: its user, its programs and the variables of the page."""

    def __init__(self, user: str | None, programs: Path, **variables: str) -> None:
        self.user = user
        self.programs = programs
        self.variables = variables

    def run(self, name: str, **more: str) -> None:
        done = run_block(name, self.user, self.programs, **self.variables, **more)
        assert done.returncode == 0, done.stdout

    def fails(self, name: str, **more: str) -> str:
        done = run_block(name, self.user, self.programs, **self.variables, **more)
        assert done.returncode == 1, done.stdout
        return done.stdout

    def copies(self) -> list[Path]:
        return sorted(Path(self.variables["BACKUPS"]).glob("base-*"))

    def archived(self) -> list[str]:
        """Names of the WAL files in the archive."""
        return sorted(path.name for path in (Path(self.variables["BACKUPS"]) / "wal").iterdir() if len(path.name) == 24)


def address(url: str) -> str:
    """A URL as `host=... dbname=...`, to which a port can be added."""
    given = psycopg.conninfo.conninfo_to_dict(url)
    return psycopg.conninfo.make_conninfo(**given)


def stored(url: str) -> set[str]:
    with psycopg.connect(url) as connection:
        return {row[0] for row in connection.execute("SELECT prompt FROM prompts").fetchall()}


def send(service: Service, agent: Any, token: str, *texts: str) -> None:
    for text in texts:
        assert service.post("/api/prompt", prompt(agent, prompt=text), token).status == 201


def play_demo(service: Service) -> None:
    demo.play(demo.Laptop(load(service.environment), service.environment))


def now(url: str) -> str:
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT clock_timestamp()::text").fetchone()
        assert row is not None
        return str(row[0])


def test_a_restore_to_a_moment_has_what_was_acknowledged_before_it_and_nothing_after(folder: Path) -> None:
    cluster, backups, restored = folder / "first" / "postgresql", folder / "backups", folder / "restored" / "postgresql"
    with embedded.running(str(folder / "first"), QUICK) as url:
        for own in (backups, restored.parent):
            programs.own_folder(own)
        operator = Operator(
            programs.server_user(),
            programs.programs(),
            SERVER=address(url),
            DATA=str(cluster),
            BACKUPS=str(backups),
            RESTORED=str(restored),
            RESTART=f"pg_ctl -D {cluster} -w restart",
        )
        operator.run("archive")
        migrations.apply(url)
        with serving(folder, database_url=url) as service:
            agent, token = registered(service)
            send(service, agent, token, "before the copies")
            operator.run("base")
            first = operator.archived()
            send(service, agent, token, "between the copies")
            before_the_copy = now(url)
            operator.run("base")
            # Two copies and their WAL; with one to keep, the other goes, and so does the WAL that only it needs.
            assert len(operator.copies()) == 2
            operator.run("prune", KEEP="2")
            assert len(operator.copies()) == 2
            operator.run("prune", KEEP="1")
            assert len(operator.copies()) == 1
            assert not set(first[:-1]) & set(operator.archived())
            # The program of the package which the embedded server comes from crashes.
            if load().postgresql_programs:
                operator.run("verify")
            send(service, agent, token, "after the copies", "just before the moment")
            moment = now(url)
            time.sleep(0.05)
            send(service, agent, token, "just after the moment")
            service.flask("device", "revoke", agent.device_id)
        there = psycopg.conninfo.make_conninfo(url, port=5433)
        try:
            operator.run("close")
            assert "no copy is older than the moment" in operator.fails("restore", MOMENT=before_the_copy)
            operator.run("restore", MOMENT=moment)
            expected = {"before the copies", "between the copies", "after the copies", "just before the moment"}
            assert stored(there) == expected
            assert stored(url) == expected | {"just after the moment"}
            # The same applied migrations: nothing is pending, nothing differs.
            assert migrations.apply(there) == []
            with serving(folder, database_url=there) as service:
                play_demo(service)
        finally:
            embedded.run_program("pg_ctl", "stop", "--mode=immediate", "-D", str(restored))


@contextlib.contextmanager
def debian_cluster(folder: Path) -> Iterator[tuple[str, Operator]]:
    """A running cluster as Debian's packages make them; its URL as a superuser, and its operator."""
    name = folder.name
    sockets, data = folder / "sockets", folder / "main"
    sockets.mkdir()
    shutil.chown(sockets, "postgres", "postgres")
    for own in ("backups", "restored"):
        (folder / own).mkdir()
        shutil.chown(folder / own, "postgres", "postgres")
    port = str(free_port())
    command = [str(CREATE), "15", name, f"--datadir={data}", f"--socketdir={sockets}", f"--port={port}"]
    command += ["-o", "listen_addresses=", "--start", "--", "--auth-local=trust", "--encoding=UTF8", "--no-sync"]
    try:
        subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL)
        url = f"postgresql://postgres@/watchpost?host={sockets}&port={port}"
        with psycopg.connect(url, dbname="postgres", autocommit=True) as connection:
            connection.execute("CREATE DATABASE watchpost")
        yield (
            url,
            Operator(
                "postgres",
                DEBIAN,
                SERVER=address(url),
                DATA=str(data),
                BACKUPS=str(folder / "backups"),
                RESTORED=str(folder / "restored" / "main"),
                RESTART=f"pg_ctlcluster 15 {name} restart",
            ),
        )
    finally:
        for cluster in (name, f"{name}-restored"):
            subprocess.run(
                ["pg_dropcluster", "--stop", "15", cluster], check=False, capture_output=True, stdin=subprocess.DEVNULL
            )


@pytest.mark.skipif(
    os.geteuid() != 0 or not CREATE.exists() or not DEBIAN.is_dir(),
    reason="needs root and Debian's packages: `make test-postgresql-15` installs postgresql-15",
)
@pytest.mark.direct(reason="a server of its own")
def test_on_debian_a_dead_server_is_restored_to_the_end_of_its_wal_and_a_restore_past_it_ends(folder: Path) -> None:
    with debian_cluster(folder) as (url, operator):
        operator.run("archive")
        migrations.apply(url)
        with serving(folder, database_url=url) as service:
            agent, token = registered(service)
            send(service, agent, token, "before the copy")
            operator.run("base")
            operator.run("verify")
            send(service, agent, token, "after the copy")
            moment = now(url)
        there = psycopg.conninfo.make_conninfo(url, port=5433)
        restored = Path(operator.variables["RESTORED"])
        # The server lives, and nothing has followed the moment.
        operator.run("close")
        operator.run("restore", MOMENT=moment)
        assert stored(there) == {"before the copy", "after the copy"}
        run_as_postgres("pg_ctl", "stop", "--mode=immediate", "-D", str(restored))
        shutil.rmtree(restored)
        # The server dies; the moment is after its last commit.
        with serving(folder, database_url=url) as service:
            send(service, agent, token_of(service, agent), "just before the crash")
        moment = now(url)
        subprocess.run(["pg_ctlcluster", "15", folder.name, "stop", "--mode=immediate"], check=True)
        operator.run("rescue")
        said = operator.fails("restore", MOMENT=moment)
        assert "recovery ended before configured recovery target was reached" in said
        shutil.rmtree(restored)
        operator.run("restore", MOMENT="")
        assert stored(there) == {"before the copy", "after the copy", "just before the crash"}
        # Debian's tools take it over.
        run_as_postgres("pg_ctl", "stop", "-D", str(restored))
        name = f"{folder.name}-restored"
        subprocess.run(
            [CREATE, "15", name, f"--datadir={restored}", f"--socketdir={folder}/sockets", "--port=5433", "--start"],
            check=True,
            capture_output=True,
            stdin=subprocess.DEVNULL,
        )
        with serving(folder, database_url=there) as service:
            play_demo(service)


def run_as_postgres(program: str, *arguments: str) -> None:
    subprocess.run([DEBIAN / program, *arguments], check=True, user="postgres", cwd="/", stdout=subprocess.DEVNULL)


# What a dump must bring back, beside the rows.
CATALOG = {
    "tables": ("review/select_tables", ("row_estimate", "bytes")),
    "columns": ("review/select_columns", ()),
    "indexes and checks": ("review/select_indexes", ("bytes",)),
    "grants": ("review/select_grants", ()),
    "partitions": ("partitions/select_partitions", ("row_estimate", "bytes")),
}


def described(url: str) -> dict[str, list[dict[str, Any]]]:
    with psycopg.connect(url, row_factory=psycopg.rows.dict_row) as connection:
        found = {
            what: [
                {column: value for column, value in row.items() if column not in ignored}
                for row in connection.execute(statement(name).text)
            ]
            for what, (name, ignored) in CATALOG.items()
        }
        found["rows"] = [
            {"table": name, **connection.execute(f'SELECT count(*) AS rows FROM "{name}"').fetchall()[0]}
            for name in [table["name"] for table in found["tables"]]
        ]
        found["checksums"] = connection.execute("SELECT * FROM migration_checksums ORDER BY name").fetchall()
        return found


def test_pg_dump_restores_everything_into_an_empty_cluster(folder: Path, database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        fill(connection, 100, 700)
    with embedded.running(str(folder / "empty"), QUICK) as url:
        Operator(None, embedded.programs(), FROM=database_url, EMPTY=url, BACKUPS=str(folder)).run("dump")
        before, after = described(database_url), described(url)
        assert all(len(listed) > 5 for listed in before.values())
        for what, listed in before.items():
            assert after[what] == listed, what
        assert migrations.apply(url) == []
        with serving(folder, database_url=url) as service:
            play_demo(service)
