"""Every setting of Watchpost. Each is an environment variable, read once when a process starts.

The variable is the field's name in capitals behind `WATCHPOST_`: `pool_size` is `WATCHPOST_POOL_SIZE`.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

PREFIX = "WATCHPOST_"
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")

# A part that can't be read would be quoted by whoever tries, and may be half of a password.
_HOST = r"(\[[0-9A-Fa-f:.]+\]|[^@/?#:,\[\]]*)(:[0-9]+)?"
_DATABASE_URL = re.compile(rf"postgres(ql)?://([^@/?#]*@)?{_HOST}(,{_HOST})*([/?].*)?")
_WRONG_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")


class SettingError(ValueError):
    """A setting has a value that can't be used. The message names the variable, never the value."""


def setting(default: Any, meaning: str, unit: str = "", least: int | None = None) -> Any:
    return dataclasses.field(default=default, metadata={"meaning": meaning, "unit": unit, "least": least})


@dataclasses.dataclass(frozen=True)
class Settings:
    """Defaults suit one laptop; the README's section "Configuration" says what to raise for a fleet."""

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
    cors_origins: str = setting("", "origins that browsers may call from, such as `chrome-extension://<id>`", "list")
    workers: int = setting(0, "gunicorn worker processes; 0: one for each core, 16 at most", "processes", 0)
    connections: int = setting(1000, "requests of up to 64 KiB that one worker handles at a time", "requests", 1)
    device_rate: int = setting(100, "requests of one device; over: 429; 0: no limit", "requests/s", 0)
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
    queue_rows: int = setting(2000, "rows of one kind that may wait in one worker before the answer is 503", "rows", 1)
    set_rows: int = setting(500, "rows that share one statement and one commit", "rows", 1)
    token_cache: int = setting(100_000, "verified tokens that one worker remembers", "tokens", 0)
    instances_per_device: int = setting(200, "browser instances of one device; over: 409", "instances", 1)
    prompts_days: int = setting(0, "age at which retention deletes prompts; 0: never", "days", 0)
    extension_status_days: int = setting(0, "age at which retention deletes status reports; 0: never", "days", 0)
    compliance_events_days: int = setting(0, "age at which retention deletes compliance events; 0: never", "days", 0)
    archive_days: int = setting(0, "silence after which retention archives devices and browsers; 0: never", "days", 0)
    log_level: str = setting("INFO", "least severe level that is logged")

    @property
    def signing_keys_path(self) -> Path:
        return Path(self.signing_keys or Path(self.data_dir) / "signing-keys.json")

    @property
    def origins(self) -> list[str]:
        return self.cors_origins.replace(",", " ").split()


def variable(field: dataclasses.Field[Any]) -> str:
    return PREFIX + field.name.upper()


def load(environ: Mapping[str, str] = os.environ) -> Settings:
    """Read the settings.

    Raises SettingError when a value has the wrong type, is too small, or is no address.
    """
    given: dict[str, Any] = {}
    for field in dataclasses.fields(Settings):
        text = environ.get(variable(field), "").strip()
        if text:
            given[field.name] = _parse(field, text)
    settings = Settings(**given)
    if not settings.issuer:
        settings = dataclasses.replace(settings, issuer="http://" + settings.bind)
    settings = dataclasses.replace(settings, issuer=settings.issuer.rstrip("/"))
    if not _is_address(settings.issuer):
        raise SettingError("WATCHPOST_ISSUER must be an http:// or https:// address.")
    for name in ("database_url", "owner_database_url", "read_database_url"):
        address = getattr(settings, name)
        if address and (not _DATABASE_URL.fullmatch(address) or _WRONG_ESCAPE.search(address)):
            what = "must be a postgresql:// URL; in a password, what is no letter or digit is written as %XX"
            raise SettingError(f"{PREFIX}{name.upper()} {what}.")
    if settings.owner_database_url and not settings.database_url:
        raise SettingError("WATCHPOST_OWNER_DATABASE_URL needs WATCHPOST_DATABASE_URL.")
    if settings.log_level not in LOG_LEVELS:
        raise SettingError(f"WATCHPOST_LOG_LEVEL must be one of {', '.join(LOG_LEVELS)}.")
    return settings


def _is_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _parse(field: dataclasses.Field[Any], text: str) -> Any:
    if isinstance(field.default, bool):
        if text.lower() in ("1", "true", "yes", "on"):
            return True
        if text.lower() in ("0", "false", "no", "off"):
            return False
        raise SettingError(f"{variable(field)} must be true or false.")
    if isinstance(field.default, int):
        try:
            number = int(text)
        except ValueError:
            raise SettingError(f"{variable(field)} must be a whole number.") from None
        if number < field.metadata["least"]:
            raise SettingError(f"{variable(field)} must be at least {field.metadata['least']}.")
        return number
    return text
