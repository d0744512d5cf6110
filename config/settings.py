"""Every setting of Watchpost. Each is a variable of the environment or of a file, read once when a process starts.

The variable is `WATCHPOST_` and the field's name in capitals: `pool_size` is `WATCHPOST_POOL_SIZE`.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from config import checks, sources
from config.checks import PREFIX, SettingError

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
MAX_INTEGER = 2**31 - 1
# A century, which is before any time that a client may report.
MAX_DAYS = 36_500

__all__ = ["PREFIX", "SettingError", "Settings", "load", "prepare_start", "unknown_variables", "variable"]


def setting(default: Any, meaning: str, unit: str = "", least: int | None = None, most: int | None = None) -> Any:
    """Declare a setting. least, most: the smallest and the largest integer that is allowed."""
    most = most or (MAX_DAYS if unit == "days" else MAX_INTEGER)
    metadata = {"meaning": meaning, "unit": unit, "least": least, "most": most}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Defaults suit one laptop; docs/configuration.md says what to change for a fleet."""

    bind: str = setting("127.0.0.1:8000", "address that gunicorn serves on", "host:port")
    database_url: str = setting(
        "", "PostgreSQL 15 or newer as a `postgresql://` URL; empty: an embedded PostgreSQL under the data directory"
    )
    owner_database_url: str = setting(
        "", "the same database for migrations and operators' commands, as its owner; empty: `WATCHPOST_DATABASE_URL`"
    )
    read_database_url: str = setting(
        "", "where `device list` and `device show` read, such as a standby as `watchpost_reader`; empty: as its owner"
    )
    data_dir: str = setting(".data", "where the embedded PostgreSQL and the signing keys live", "folder")
    postgresql_programs: str = setting(
        "", "programs that the embedded PostgreSQL runs, such as `/usr/lib/postgresql/15/bin`; empty: its own", "folder"
    )
    issuer: str = setting("", "issuer of all tokens, and the public address of the service; empty: `http://` + bind")
    signing_keys: str = setting(
        "", "JWKS file of the signing keys; empty: `signing-keys.json` in the data directory", "file"
    )
    access_token_seconds: int = setting(900, "lifetime of a device's access token", "s", 60)
    heartbeat_seconds: int = setting(60, "heartbeat interval that devices are told", "s", 1)
    require_proof: bool = setting(False, "refuse registrations without a proof of the device's key")
    cors_origins: str = setting("", "origins that browsers may call from, such as `chrome-extension://<id>`", "list")
    workers: int = setting(0, "gunicorn worker processes; 0: one for each core, 16 at most", "processes", 0, 1024)
    connections: int = setting(1000, "requests of up to 64 KiB that one worker handles at a time", "requests", 1)
    device_rate: int = setting(100, "requests of one device in each priority; over: 429; 0: no limit", "requests/s", 0)
    enrollment_rate: int = setting(100, "registrations with one enrolment; over: 429; 0: no limit", "requests/s", 0)
    address_rate: int = setting(100, "refused tokens of one address; over: 429; 0: no limit", "requests/s", 0)
    burst_seconds: int = setting(30, "time whose requests may come at once, of each of these rates", "s", 1)
    redis_url: str = setting("", "Redis that counts these rates for all workers and hosts; empty: each worker counts")
    proxies: int = setting(0, "proxies in front whose `X-Forwarded-For` is believed", "proxies", 0)
    graceful_seconds: int = setting(30, "time that running requests get to finish at a stop", "s", 1)
    pool_size: int = setting(8, "database connections of one worker", "connections", 1)
    pool_wait_seconds: int = setting(5, "wait for a database connection before the answer is 503", "s", 1)
    statement_timeout_ms: int = setting(5000, "time that one statement may take in the database", "ms", 1)
    prepare_statements: bool = setting(True, "prepare statements; `false` behind PgBouncer older than 1.22")
    queue_rows: int = setting(
        2000, "rows of one record type that may wait in one worker before the answer is 503", "rows", 1
    )
    set_rows: int = setting(500, "rows of one group commit", "rows", 1)
    token_cache: int = setting(100_000, "verified tokens that one worker caches", "tokens", 0)
    instances_per_device: int = setting(
        200, "browser instances of one device; the answer to more is 409", "instances", 1
    )
    prompts_days: int = setting(0, "age at which retention deletes prompts; 0: never", "days", 0)
    extension_status_days: int = setting(0, "age at which retention deletes status reports; 0: never", "days", 0)
    compliance_events_days: int = setting(0, "age at which retention deletes compliance events; 0: never", "days", 0)
    archive_days: int = setting(0, "silence after which retention archives devices and browsers; 0: never", "days", 0)
    log_level: str = setting("INFO", "least severe level that is logged")

    @property
    def signing_keys_path(self) -> Path:
        return Path(self.signing_keys or Path(self.data_dir) / "signing-keys.json")

    @property
    def origins(self) -> list[re.Pattern[str]]:
        """Patterns of the allowed `Origin` headers. Raises SettingError."""
        return [checks.origin_pattern(entry) for entry in self.cors_origins.replace(",", " ").split()]


def variable(field: dataclasses.Field[Any]) -> str:
    return PREFIX + field.name.upper()


def unknown_variables(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Return a sentence for each WATCHPOST_ variable that is no setting, with the most similar name. Never a value."""
    found = sources.unknown(sources.read(environ), map(variable, dataclasses.fields(Settings)))
    return [f"{name} is not a setting" + (f": did you mean {similar}?" if similar else ".") for name, similar in found]


def load(environ: Mapping[str, str] = os.environ) -> Settings:
    """Read and check the settings. Raises SettingError, which names the variable."""
    values = sources.read(environ)
    given: dict[str, Any] = {}
    for field in dataclasses.fields(Settings):
        text = values.get(variable(field), "").strip()
        if text:
            given[field.name] = _parse(field, text)
    settings = Settings(**given)
    checks.bind(settings.bind)
    if not settings.issuer:
        if "," in settings.bind or settings.bind.startswith("unix:"):
            raise SettingError(f"{PREFIX}ISSUER is needed unless {PREFIX}BIND is one host:port.")
        settings = dataclasses.replace(settings, issuer="http://" + settings.bind)
    settings = dataclasses.replace(settings, issuer=settings.issuer.rstrip("/"))
    checks.issuer(settings.issuer)
    for name in ("database_url", "owner_database_url", "read_database_url"):
        if address := getattr(settings, name):
            checks.database_url(name.upper(), address)
    if settings.owner_database_url and not settings.database_url:
        raise SettingError(f"{PREFIX}OWNER_DATABASE_URL needs {PREFIX}DATABASE_URL.")
    if settings.redis_url:
        checks.redis_url(settings.redis_url)
    settings.origins  # noqa: B018 (raises)
    if settings.log_level not in LOG_LEVELS:
        raise SettingError(f"{PREFIX}LOG_LEVEL must be one of {', '.join(LOG_LEVELS)}.")
    return settings


def prepare_start(settings: Settings) -> None:
    """Check what only a start of the service can: its address and its data directory. Raises SettingError."""
    checks.local_address(settings.bind)
    if not settings.database_url or not settings.signing_keys:
        checks.data_dir(Path(settings.data_dir))


def _parse(field: dataclasses.Field[Any], text: str) -> Any:
    if isinstance(field.default, bool):
        if text.lower() in ("1", "true", "yes", "on"):
            return True
        if text.lower() in ("0", "false", "no", "off"):
            return False
        raise SettingError(f"{variable(field)} must be true or false.")
    if isinstance(field.default, int):
        if not re.fullmatch(r"[+-]?[0-9]{1,20}", text):
            raise SettingError(f"{variable(field)} must be a whole number.")
        least, most = field.metadata["least"], field.metadata["most"]
        if not least <= int(text) <= most:
            raise SettingError(f"{variable(field)} must be at least {least} and at most {most}.")
        return int(text)
    if not text.isprintable():
        raise SettingError(f"{variable(field)} must be one line of printable characters.")
    return text
