"""Checks of single settings. Each raises SettingError with a sentence that names the variable and never the value."""

from __future__ import annotations

import ipaddress
import re
import socket
from pathlib import Path
from urllib.parse import urlsplit

PREFIX = "WATCHPOST_"

_HOST = r"(\[[0-9A-Fa-f:.]+\]|[^@/?#:,\[\]]*)(:[0-9]+)?"
# An error of libpq about a URL that it can't parse quotes it, password included, so libpq never sees such a URL.
_DATABASE_URL = re.compile(rf"postgres(?:ql)?://([^@/?#]*@)?(?P<hosts>{_HOST}(,{_HOST})*)([/?].*)?")
_WRONG_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_BIND = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")
_LABEL = "[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?"
_ORIGIN = re.compile(rf"([a-z][a-z0-9+.-]*)://({_LABEL}(?:\.{_LABEL})*|\[[0-9A-Fa-f:.]+\])(?::([0-9]{{1,5}}))?")
# Browsers give these extensions a random id at each installation.
_RANDOM_ID_SCHEMES = ("moz-extension", "safari-web-extension")
_DEFAULT_PORTS = {"http": "80", "https": "443"}


class SettingError(ValueError):
    """A setting can't be used. The message is a sentence that names the variable, never its value."""


def bind(text: str) -> None:
    """Check a list of `host:port`, `[IPv6]:port` or `unix:PATH`."""
    for address in text.split(","):
        found = _BIND.fullmatch(address)
        if address.startswith("unix:/") or (found and _is_port(found[2]) and _is_host(found[1])):
            continue
        raise SettingError(f"{PREFIX}BIND must be host:port with a port from 1 to 65535, such as 127.0.0.1:8000.")


def issuer(text: str) -> None:
    """Check an http or https address, which may have a path."""
    try:
        parts = urlsplit(text)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address or not text.isascii() or not text.isprintable() or set(text) & set(' @?#"\\<>'):
        raise SettingError(f"{PREFIX}ISSUER must be an http:// or https:// address without user, query or fragment.")


def database_url(name: str, text: str) -> None:
    """Check a URL of PostgreSQL, which may name several hosts. name: of the variable, without its prefix."""
    found = _DATABASE_URL.fullmatch(text)
    if not found or _WRONG_ESCAPE.search(text):
        rule = "must be a postgresql:// URL; in a password, write what is neither letter nor digit as %XX"
        raise SettingError(f"{PREFIX}{name} {rule}.")
    for host in found["hosts"].split(","):
        port = host.rpartition("]")[2].partition(":")[2]
        if port and not _is_port(port):
            raise SettingError(f"{PREFIX}{name} must have a port from 1 to 65535.")


def redis_url(text: str) -> None:
    try:
        parts = urlsplit(text)
        is_address = (parts.scheme in ("redis", "rediss") and bool(parts.hostname) and parts.port != 0) or (
            parts.scheme == "unix" and bool(parts.path)
        )
    except ValueError:
        is_address = False
    if not is_address:
        raise SettingError(f"{PREFIX}REDIS_URL must be a redis://, rediss:// or unix:// URL.")


def origin_pattern(entry: str) -> re.Pattern[str]:
    """Return the pattern of the `Origin` headers that an entry of WATCHPOST_CORS_ORIGINS allows.

    entry: `scheme://host[:port]`, an extension's origin, `moz-extension://*` or `safari-web-extension://*`. The
    pattern must be used with `fullmatch` or `match`: it ends with the end of the text.
    """
    for scheme in _RANDOM_ID_SCHEMES:
        if entry == f"{scheme}://*":
            return re.compile(rf"{scheme}://[0-9A-Za-z-]+\Z")
    found = _ORIGIN.fullmatch(entry)
    if not found or not _is_host(found[2]) or (found[3] is not None and not _is_port(found[3])):
        raise SettingError(
            f"{PREFIX}CORS_ORIGINS must be a list of scheme://host[:port] without a path; * is allowed only in "
            f"{' and '.join(f'{scheme}://*' for scheme in _RANDOM_ID_SCHEMES)}."
        )
    scheme, host, port = found.groups()
    if scheme in _DEFAULT_PORTS:
        # The way in which a browser writes the origin (RFC 6454, section 6.2).
        host = f"[{ipaddress.IPv6Address(host[1:-1])}]" if host.startswith("[") else host.lower()
        port = str(int(port)) if port else None
        port = None if port == _DEFAULT_PORTS[scheme] else port
    return re.compile(re.escape(f"{scheme}://{host}" + (f":{port}" if port else "")) + r"\Z")


def local_address(text: str) -> None:
    """Check, when the service starts, that this machine has the addresses of WATCHPOST_BIND."""
    for address in text.split(","):
        if address.startswith("unix:"):
            continue
        host = address.rpartition(":")[0].strip("[]")
        try:
            family, kind, *_, found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
            with socket.socket(family, kind) as probe:
                probe.bind(found)
        except (OSError, UnicodeError):
            raise SettingError(f"{PREFIX}BIND must name an address of this machine.") from None


def data_dir(path: Path) -> None:
    """Make the data directory, unless it exists, when the service starts."""
    try:
        for folder in (*reversed(path.parents), path):
            if not folder.is_dir():
                # With `parents=True` the parents would have the mode that the umask leaves.
                folder.mkdir(mode=0o755, exist_ok=True)
    except OSError as error:
        raise SettingError(f"{PREFIX}DATA_DIR must be a folder that can be made: {error.strerror}.") from None


def _is_port(text: str) -> bool:
    return len(text) <= 5 and 0 < int(text) < 65536


def _is_host(text: str) -> bool:
    if not text.startswith("["):
        # Digits and dots alone are an IPv4 address, so 1.2.3.4.5 is a mistake rather than a name.
        return not re.fullmatch(r"[0-9.]+", text) or _is_address(text, ipaddress.IPv4Address)
    return _is_address(text[1:-1], ipaddress.IPv6Address)


def _is_address(text: str, kind: type[ipaddress.IPv4Address] | type[ipaddress.IPv6Address]) -> bool:
    try:
        kind(text)
    except ValueError:
        return False
    return True
