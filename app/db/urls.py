"""Addresses of the database, as libpq's URLs, for each purpose.

Where no database is configured they name the embedded one of the data directory, whether it runs or not.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from urllib.parse import quote

from config.settings import Settings

OWNER = "watchpost_owner"
WRITER = "watchpost_writer"
# The embedded server's database, and its folder in the data directory.
EMBEDDED_DATABASE = "watchpost"
EMBEDDED_CLUSTER = "postgresql"
# unix(7): the path of a socket has at most so many bytes.
MAX_SOCKET_PATH = 107


def writer_url(settings: Settings) -> str:
    """What requests and background jobs use."""
    return settings.database_url or embedded_url(settings.data_dir, WRITER)


def owner_url(settings: Settings) -> str:
    """What operators' commands use."""
    return settings.owner_database_url or settings.database_url or embedded_url(settings.data_dir, OWNER)


def migration_url(settings: Settings) -> str:
    """What migrations use: the owner, or a superuser, who can create that role."""
    return settings.owner_database_url or settings.database_url or embedded_url(settings.data_dir)


def embedded_url(data_dir: str, role: str = "postgres") -> str:
    """The embedded server's database, by default for the superuser."""
    sockets = quote(str(socket_folder(cluster_folder(data_dir))), safe="")
    return f"postgresql://{role}@/{EMBEDDED_DATABASE}?host={sockets}"


def cluster_folder(data_dir: str) -> Path:
    return Path(data_dir).resolve() / EMBEDDED_CLUSTER


def socket_folder(cluster: Path) -> Path:
    """Where the embedded server's socket is: the cluster's folder, or a short path if libpq can't take that one."""
    # libpq reads a comma as the separator between two hosts.
    if len(str(cluster / ".s.PGSQL.5432")) <= MAX_SOCKET_PATH and "," not in str(cluster):
        return cluster
    digest = hashlib.sha256(str(cluster).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"watchpost-{os.getuid()}-{digest}"
