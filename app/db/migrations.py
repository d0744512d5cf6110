"""The schema: yoyo reads `migrations/`; here each is applied once, whole, and unchanged.

One process at a time, however many start together. A migration and the note that it was applied are one transaction,
so an interrupted run goes on where it stopped. One that can't have a transaction (`-- transactional: false`) must bear
being run twice. The roles come before the schema, the grants after it.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import psycopg
from psycopg.rows import dict_row

from app.db import checksums, grants, partitions
from app.db.advisory_locks import try_lock
from app.db.statements import statement
from app.db.urls import OWNER

log = logging.getLogger(__name__)

FOLDER = Path(__file__).resolve().parents[2] / "migrations"
SELECT_MIGRATIONS = statement("service/select_migrations")
# Writers queue behind who waits for a table's lock: each try is shorter than their timeout, and there are many.
LOCK_TIMEOUT = "1s"
MAX_TRIES = 30
# lock_not_available, deadlock_detected
BUSY = {"55P03", "40P01"}
# Classes of errors whose message names objects of the database, and quotes no row: privileges and syntax, objects in
# use or depended on, what is not supported, resources.
NAMES_ONLY = {"42", "2B", "55", "0A", "3F", "53", "57"}


class MigrationError(Exception):
    """A migration can't be applied. The message says which, and what to do."""


def apply(url: str) -> list[str]:
    """Apply what is pending and return its names. Raises MigrationError, psycopg.Error.

    Replicas that start together wait for one another: the first migrates, the others find nothing to do. A superuser
    makes the roles first and migrates as their owner. Without roles, and without the right to make them, everything
    belongs to whoever migrates.
    """
    with _exclusive(url) as connection:
        rights = grants.rights(connection)
        if rights["is_superuser"]:
            _retry_on_lock("config/roles.sql", partial(grants.create_roles, connection))
            rights = grants.rights(connection)
        elif not rights["has_roles"]:
            log.warning("one role does everything: a DBA has not run config/roles.sql")
        with _backend(url, rights["may_be_owner"]) as backend:
            migrations = _yoyo().read_migrations(str(FOLDER))
            pending = backend.to_apply(migrations)
            _check(backend, [name for name in names() if name not in {migration.id for migration in pending}])
            for migration in pending:
                _retry_on_lock(migration.id, partial(_apply_one, backend, migration))
            if rights["has_roles"] and (pending or not grants.are_applied(checksums.recorded(backend))):
                _retry_on_lock("config/grants.sql", partial(grants.apply, backend))
        partitions.try_to_ensure(url)
        return [migration.id for migration in pending]


def rollback(url: str, to: str | None = None) -> list[str]:
    """Undo applied migrations, newest first, down to and including the one named, or all. Returns their names."""
    with _exclusive(url) as connection, _backend(url, grants.rights(connection)["may_be_owner"]) as backend:
        undone = backend.to_rollback(_yoyo().read_migrations(str(FOLDER)))
        if to is not None:
            undone = undone.filter(lambda migration: migration.id >= to)
        for migration in undone:
            _retry_on_lock(migration.id, partial(_rollback_one, backend, migration))
        return [migration.id for migration in undone]


def names() -> list[str]:
    """The names of all migrations, in order."""
    return [path.stem for path in sorted(FOLDER.glob("*.sql")) if not path.stem.endswith(".rollback")]


def is_behind(url: str) -> bool:
    """Whether migrations or grants are pending, for a role that may not apply them."""
    with psycopg.connect(url, autocommit=True, row_factory=dict_row) as connection:
        try:
            found = connection.execute(SELECT_MIGRATIONS.text).fetchall()
        except (psycopg.errors.UndefinedTable, psycopg.errors.InsufficientPrivilege):
            return True
    applied = {row["migration_id"] for row in found}
    return not applied.issuperset(names()) or not grants.has_grants(found)


def _yoyo() -> Any:
    # Slow to import, and only migrations need it.
    import yoyo

    return yoyo


def _apply_one(backend: Any, migration: Any) -> None:
    migration.load()
    if not migration.use_transactions:
        migration.process_steps(backend, "apply")
    with backend.transaction():
        if migration.use_transactions:
            migration.process_steps(backend, "apply")
        backend.mark_one(migration)
        checksums.record(backend, migration.id, FOLDER / f"{migration.id}.sql")


def _rollback_one(backend: Any, migration: Any) -> None:
    migration.load()
    if not migration.use_transactions:
        migration.process_steps(backend, "rollback")
    with backend.transaction():
        if migration.use_transactions:
            migration.process_steps(backend, "rollback")
        backend.unmark_one(migration)
        checksums.delete(backend, migration.id)


def _check(backend: Any, applied: list[str]) -> None:
    """Raises MigrationError when an applied file has changed. A file that has no checksum yet gets one."""
    recorded = checksums.recorded(backend)
    for name in applied:
        path = FOLDER / f"{name}.sql"
        if name not in recorded:
            with backend.transaction():
                checksums.record(backend, name, path)
        elif recorded[name] != checksums.checksum(path):
            raise MigrationError(f"{name}.sql was changed after it was applied: put it back, and write a new migration")


def _retry_on_lock(name: str, work: Callable[[], object]) -> None:
    """Do what needs a lock, and again when somebody holds it. Raises MigrationError when it is held for too long."""
    for tries_left in reversed(range(MAX_TRIES)):
        try:
            work()
            return
        except psycopg.Error as error:
            if error.sqlstate not in BUSY:
                raise MigrationError(f"{name}: {_explain(error)}") from None
            if not tries_left:
                raise MigrationError(f"{name}: a table is in use by a long transaction; run this again later") from None
            log.warning("waiting for a lock", extra={"fields": {"migration": name, "sqlstate": error.sqlstate}})
            time.sleep(random.uniform(0.2, 1.0))  # noqa: S311


def _explain(error: psycopg.Error) -> str:
    """What failed, without what a row says: the message where it can only name objects, else the objects' names."""
    state = error.sqlstate or ""
    if state[:2] in NAMES_ONLY:
        return f"{error.diag.message_primary} ({state})"
    names = (error.diag.table_name, error.diag.column_name, error.diag.constraint_name, error.diag.datatype_name)
    return " ".join([f"{type(error).__name__} {state}".strip(), *(f"of {name}" for name in names if name)])


@contextmanager
def _exclusive(url: str) -> Iterator[psycopg.Connection[Any]]:
    """Wait until no other process migrates; yield a connection for what is no migration of yoyo's."""
    # yoyo's own lock is a row that outlives a killed process; this one ends with its connection.
    with psycopg.connect(url, autocommit=True) as holder:
        while True:
            with try_lock(holder, "migrations") as is_locked:
                if is_locked:
                    with psycopg.connect(url, autocommit=True, options=f"-c lock_timeout={LOCK_TIMEOUT}") as connection:
                        yield connection
                    return
            time.sleep(0.2)


@contextmanager
def _backend(url: str, as_owner: bool) -> Iterator[Any]:
    backend = _yoyo().get_backend(_yoyo_url(url, as_owner))
    try:
        backend.break_lock()
        backend.ensure_internal_schema_updated()
        checksums.create(backend)
        yield backend
    finally:
        backend.connection.close()


def _yoyo_url(url: str, as_owner: bool) -> str:
    """The same database in yoyo's dialect, with psycopg 3, the timeouts of a migration, and the role that is to own."""
    given = psycopg.conninfo.conninfo_to_dict(url)
    options = [str(given.get("options", "")), f"-c lock_timeout={LOCK_TIMEOUT} -c client_min_messages=warning"]
    # A large table is read for as long as it takes; what others wait for is bounded by the lock's.
    options.append("-c statement_timeout=0")
    if as_owner:
        options.append(f"-c role={OWNER}")
    given["options"] = " ".join(options).strip()
    database = quote(str(given.pop("dbname", "")))
    return f"postgresql+psycopg:///{database}?{urlencode({name: str(value) for name, value in given.items()})}"
