"""`make dba`: what a DBA reviews, of a database of its own that is filled, and the locks that each migration takes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psycopg
from yoyo.migrations import read_sql_migration

from app.db import grants, migrations
from app.dev import embedded
from tests.support.seed import fill
from tests.support.service import ROOT

# Nothing of it outlives the review.
CONFIGURATION = "fsync = off\n"
SOME_ROWS = {
    "devices": "(device_id) SELECT 'device-' || n",
    "browser_instances": "(instance_id, device_id) SELECT 'instance-' || n, 'device-' || n",
    "prompts": """("timestamp", device_id, prompt_id, instance_id, site, url, prompt)
        SELECT 1700000000000 + n, 'device-' || n, gen_random_uuid(), 'i', 's', 'u', 'p'""",
    "extension_status": """(reported_at, device_id, status_id, instance_id, status)
        SELECT 1700000000000 + n, 'device-' || n, gen_random_uuid(), 'i', 'enabled'""",
    "compliance_events": """(detected_at, device_id, event_id, event_type, severity)
        SELECT 1700000000000 + n, 'device-' || n, gen_random_uuid(), 'e', 'low'""",
}
# Of tables that were there before the migration: nobody waits for a new one.
LOCKS = """
SELECT pg_class.relname, pg_locks.mode
FROM pg_locks
INNER JOIN pg_class ON pg_locks.relation = pg_class.oid
WHERE pg_locks.pid = pg_backend_pid() AND pg_class.oid = ANY (%s) AND pg_locks.granted
ORDER BY pg_class.relname, pg_locks.mode
"""
TABLES = "SELECT oid, relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')"
# Those that make a reader or a writer wait.
BLOCKING = {"ShareLock", "ShareRowExclusiveLock", "ExclusiveLock", "AccessExclusiveLock"}


def locks_of_migrations(connection: psycopg.Connection[Any]) -> dict[str, dict[str, set[str]]]:
    """Apply each migration to a new database whose tables have rows by then.

    Returns, by migration and table that was there before, the modes in which it held the table until its end.
    """
    connection.execute(grants.ROLES.read_text(encoding="utf-8"))  # type: ignore[arg-type]
    connection.execute(f"SET ROLE {migrations.OWNER}")
    taken: dict[str, dict[str, set[str]]] = {}
    for name in migrations.names():
        there = dict(connection.execute(TABLES).fetchall())
        for table in SOME_ROWS.keys() & set(there.values()):
            if not connection.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone():
                connection.execute(f"INSERT INTO {table} {SOME_ROWS[table]} FROM generate_series(1, 1000) AS n")
        taken[name] = {}
        path = migrations.FOLDER / f"{name}.sql"
        text = path.read_text(encoding="utf-8")
        if text.startswith("-- transactional: false"):
            # It holds its locks for as long as it works, and none of those that make others wait. Several commands
            # that are sent together are a transaction: each is sent alone, as yoyo does.
            for command in read_sql_migration(str(path))[2]:
                connection.execute(command)  # type: ignore[arg-type]
            continue
        with connection.transaction():
            connection.execute(text)  # type: ignore[arg-type]
            for table, mode in connection.execute(LOCKS, [list(there)]).fetchall():
                taken[name].setdefault(table, set()).add(mode)
    return taken


def main(devices: int = 20_000, events: int = 28_000) -> None:
    folder = Path(tempfile.mkdtemp(prefix="wp-dba-"))
    folder.chmod(0o755)
    try:
        with embedded.running(str(folder), CONFIGURATION) as url:
            migrations.apply(url)
            with psycopg.connect(url, autocommit=True) as connection:
                fill(connection, devices, events)
                connection.execute("VACUUM ANALYZE")
                connection.execute("CREATE DATABASE locks")
            kept = {name: value for name, value in os.environ.items() if not name.endswith("DATABASE_URL")}
            flask = [str(Path(sys.executable).parent / "flask"), "--app", "wsgi", "review"]
            # The command itself, as on a server of one's own.
            subprocess.run(flask, cwd=ROOT, env={**kept, "WATCHPOST_DATA_DIR": str(folder)}, check=True)
            with psycopg.connect(url, dbname="locks", autocommit=True) as connection:
                taken = locks_of_migrations(connection)
        print("\n## Locks of migrations, as measured\n")
        print("On tables that had rows before it, held until its end. Bold: readers or writers wait.\n")
        print("| migration | locks |\n|---|---|")
        for name, tables in taken.items():
            shown = [
                f"{table}: " + ", ".join(f"**{mode}**" if mode in BLOCKING else mode for mode in sorted(modes))
                for table, modes in tables.items()
            ]
            print(f"| `{name}` | {'; '.join(shown) or 'none'} |")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
