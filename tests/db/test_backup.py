"""Backup and restore: the README's commands, run as they stand, and the service on what they bring back."""

from __future__ import annotations

import os
import pwd
import re
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import psycopg

from app.db import migrations
from app.db.statements import statement
from app.dev import embedded, programs
from config.settings import load
from tests import demo
from tests.server.test_service import prompt, registered
from tests.support.seed import fill
from tests.support.service import ROOT, Service, serving

# The machine does not crash meanwhile.
QUICK = "fsync = off\nautovacuum = off\n"


def run_block(name: str, as_server: bool, **variables: str) -> None:
    """Run a block of the README: as the server's user, or as who runs the tests."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Backup and restore\n")[2]
    block = re.search(rf"```sh\n# {name}\n(.*?)```", section, re.DOTALL)
    assert block is not None
    user = programs.server_user() if as_server else None
    # Files, not pipes: a server that is started would hold a pipe open for as long as it lives.
    with tempfile.TemporaryFile("w+") as output:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block[1]],
            cwd="/" if as_server else ROOT,
            env={**os.environ, "PATH": f"{embedded.programs()}:{os.environ['PATH']}", "LC_ALL": "C.UTF-8", **variables},
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
        assert done.returncode == 0, output.read()


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


def test_a_restore_to_a_moment_has_what_was_acknowledged_before_it_and_nothing_after(folder: Path) -> None:
    cluster, backups, restored = folder / "first" / "postgresql", folder / "backups", folder / "restored" / "postgresql"
    with embedded.running(str(folder / "first"), QUICK) as url:
        for own in (backups, restored.parent):
            programs.own_folder(own)
        known = {"SERVER": address(url), "DATA": str(cluster), "BACKUPS": str(backups), "RESTORED": str(restored)}
        run_block("archive", True, **known)
        migrations.apply(url)
        with serving(folder, database_url=url) as service:
            agent, token = registered(service)
            send(service, agent, token, "before the copy")
            run_block("base", True, **known)
            # That of the package which the embedded server comes from crashes.
            if load().postgresql_programs:
                run_block("verify", True, **known)
            send(service, agent, token, "after the copy", "just before the moment")
            with psycopg.connect(url) as connection:
                moment = connection.execute("SELECT clock_timestamp()::text").fetchone()
            assert moment is not None
            time.sleep(0.05)
            send(service, agent, token, "just after the moment")
            service.flask("device", "revoke", agent.device_id)
        there = psycopg.conninfo.make_conninfo(url, port=5433)
        try:
            run_block("restore", True, **known, MOMENT=moment[0])
            assert stored(there) == {"before the copy", "after the copy", "just before the moment"}
            assert stored(url) == stored(there) | {"just after the moment"}
            # The same applied migrations: nothing is pending, nothing differs.
            assert migrations.apply(there) == []
            with serving(folder, database_url=there) as service:
                play_demo(service)
        finally:
            embedded.run_program("pg_ctl", "stop", "--mode=immediate", "-D", str(restored))


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


def test_a_dump_brings_everything_into_an_empty_cluster(folder: Path, database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        fill(connection, 100, 700)
    with embedded.running(str(folder / "empty"), QUICK) as url:
        run_block("dump", False, SERVER=database_url, EMPTY=url, BACKUPS=str(folder))
        before, after = described(database_url), described(url)
        assert all(len(listed) > 5 for listed in before.values())
        for what, listed in before.items():
            assert after[what] == listed, what
        assert migrations.apply(url) == []
        with serving(folder, database_url=url) as service:
            play_demo(service)
