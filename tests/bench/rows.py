"""What is sent and what is there before: bodies, devices, tokens."""

from __future__ import annotations

import base64
import hashlib
import json
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jwt
import psycopg
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm

from app.api.scopes import WRITE

TOKEN_SECONDS = 24 * 3600

# About 700 bytes. load.lua and pgbench fill in what begins with a dollar sign.
PROMPT = {
    "device_id": "$device",
    "instance_id": "$instance",
    "prompt_id": "$uuid",
    "timestamp": "$time",
    "site": "chatgpt.com",
    "url": "https://chatgpt.com/c/$uuid",
    "prompt": (
        "Summarise the attached minutes of the quarterly planning meeting in five points for people who were not "
        "there, name who agreed to do what and by when, and say plainly what was left open. Keep it under two hundred "
        "words. Reference $fresh."
    ),
    "browser_name": "chrome",
    "browser_version": "142.0.7444.60",
    "profile_name": "Work",
    "username": "morgan.lee@example.com",
    "page_title": "Quarterly planning - ChatGPT",
    "conversation_id": "$uuid",
    "model": "gpt-5",
    "action": "allowed",
    "metadata": {"source": "composer", "attachments": 1, "language": "en"},
}
METADATA = {
    "hostname": "host-of-$device",
    "macs": ["02:00:5e:10:00:01", "02:00:5e:10:00:02"],
    "ips": ["10.20.30.40", "fe80::5eff:fe10:1"],
    "os": {"name": "Windows", "version": "11", "build": "26100"},
    "browsers": [{"name": "chrome", "version": "142.0.7444.60"}, {"name": "edge", "version": "142.0.3595.65"}],
}
INSTANCE = {
    "browser_name": "chrome",
    "browser_version": "142.0.7444.60",
    "profile_name": "Work",
    "profile_path": "C:/Users/morgan/AppData/Local/Google/Chrome/User Data/Profile 1",
    "extension_id": "aapbdbdomjkkjkaonfhkkikfgjllcleb",
    "extension_version": "3.2.1",
    "discovered_at": 1_760_000_000_000,
}
BODIES: dict[str, dict[str, Any]] = {
    "prompt": PROMPT,
    "device-register": {
        "device_id": "$fresh",
        "public_key_pem": "-----BEGIN PUBLIC KEY-----\n$instance\n-----END PUBLIC KEY-----\n",
        **METADATA,
    },
    "device-heartbeat": {"device_id": "$device"},
    "device-heartbeat-metadata": {"device_id": "$device", **METADATA},
    "browser-register": {"instance_id": "$fresh", "device_id": "$device", **INSTANCE},
    "browser-heartbeat": {"instance_id": "$instance"},
    "browser-heartbeat-metadata": {"instance_id": "$instance", **INSTANCE},
    "extension-status": {
        "instance_id": "$instance",
        "status": "enabled",
        "status_id": "$uuid",
        "reported_at": "$time",
        "reported_by": "extension",
        "metadata": {"extension_version": "3.2.1"},
    },
    "compliance-event": {
        "device_id": "$device",
        "instance_id": "$instance",
        "event_type": "prompt_blocked",
        "severity": "medium",
        "event_id": "$uuid",
        "detected_at": "$time",
        "user_context": {"username": "morgan.lee@example.com"},
        "details": {"site": "chatgpt.com", "rule": "customer-data", "characters": 352},
    },
}
PEM = (
    "-----BEGIN PUBLIC KEY-----\n"
    "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEaxfR8uEsQkf4vOblY6RA8ncDfYEt\n"
    "6zOg9KE5RdiYwpZP40Li/hp/m47n60p8D54WK84zV2sxXs7LtkBoN79R9Q==\n"
    "-----END PUBLIC KEY-----\n"
)

# The prompts that are there before: small, and all older than those that are sent, which hold a time of now.
FILL_PROMPTS = """
INSERT INTO prompts ("timestamp", device_id, prompt_id, instance_id, site, url, prompt)
SELECT
    %(now)s::bigint - 90 * 86400000::bigint + (n * (89 * 86400000::float / %(count)s))::bigint,
    'device-' || lpad((n %% %(devices)s + 1)::text, 7, '0'),
    gen_random_uuid(),
    'instance-' || lpad((n %% %(devices)s + 1)::text, 7, '0'),
    'chatgpt.com',
    'https://chatgpt.com/',
    'Question ' || n
FROM generate_series(1, %(count)s) AS n
"""
FILL_DEVICES = """
INSERT INTO devices (device_id, public_key_pem, key_thumbprint, hostname, macs, ips, os, browsers, last_heartbeat)
SELECT
    'device-' || lpad(n::text, 7, '0'),
    %(pem)s,
    rpad(md5(n::text), 43, 'x'),
    'host-of-device-' || lpad(n::text, 7, '0'),
    %(macs)s,
    %(ips)s,
    %(os)s,
    %(browsers)s,
    now()
FROM generate_series(1, %(count)s) AS n
"""
FILL_INSTANCES = """
INSERT INTO browser_instances (
    instance_id, device_id, browser_name, browser_version, profile_name, profile_path, extension_id,
    extension_version, discovered_at, last_seen
)
SELECT
    'instance-' || lpad(n::text, 7, '0'),
    'device-' || lpad(n::text, 7, '0'),
    %(browser_name)s, %(browser_version)s, %(profile_name)s, %(profile_path)s, %(extension_id)s,
    %(extension_version)s, %(discovered_at)s,
    now()
FROM generate_series(1, %(count)s) AS n
"""


def template(kind: str) -> str:
    """One body as text; a number stands without quotes."""
    return json.dumps(BODIES[kind], separators=(",", ":")).replace('"$time"', "$time")


def write_registrations(path: Path, token: str, count: int) -> Path:
    """A file for load.lua: a line for each registration, with a key of its own where others name their instance."""
    with path.open("w") as file:
        for number in range(count):
            key = Ed25519PrivateKey.generate().public_key()
            spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            file.write(f"{device(number)} {base64.b64encode(spki).decode()} {token}\n")
    return path


def device(number: int) -> str:
    return f"device-{number:07}"


def thumbprint(number: int) -> str:
    """Of the key of a device that FILL_DEVICES makes."""
    return hashlib.md5(str(number).encode()).hexdigest().ljust(43, "x")


def fill(url: str, devices: int, prompts: int = 0) -> None:
    """Put so many devices, as many browser instances, and so many prompts into an empty database."""
    with psycopg.connect(url, autocommit=True) as connection:
        metadata = {name: METADATA[name] for name in ("macs", "ips")}
        texts = {name: json.dumps(METADATA[name]) for name in ("os", "browsers")}
        connection.execute(FILL_DEVICES, {"pem": PEM, "count": devices, **metadata, **texts})
        connection.execute(FILL_INSTANCES, {"count": devices, **INSTANCE})
        if prompts:
            parameters = {"count": prompts, "devices": devices, "now": int(time.time() * 1000)}
            connection.execute(FILL_PROMPTS, parameters)
        connection.execute("VACUUM ANALYZE devices, browser_instances, prompts")


class Mint:
    """Signs access tokens as the service's token endpoint does, with its signing key."""

    def __init__(self, signing_keys: Path, issuer: str) -> None:
        key = json.loads(signing_keys.read_bytes())["keys"][0]
        self._key = ECAlgorithm.from_jwk(key)
        self._kid = key["kid"]
        self._issuer = issuer

    def token(self, number: int) -> str:
        now = int(time.time())
        claims = {
            "iss": self._issuer,
            "aud": self._issuer,
            "sub": device(number),
            "client_id": device(number),
            "iat": now,
            "exp": now + TOKEN_SECONDS,
            "jti": base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("="),
            "scope": " ".join(WRITE),
            "cnf": {"jkt": thumbprint(number)},
        }
        headers = {"typ": "at+jwt", "kid": self._kid}
        return jwt.encode(claims, self._key, algorithm="ES256", headers=headers)

    def write(self, path: Path, numbers: Iterable[int]) -> Path:
        """A file for load.lua: a line for each device number, a new token even where a number comes again."""
        with path.open("w") as file:
            for number in numbers:
                file.write(f"{device(number)} instance-{number:07} {self.token(number)}\n")
        return path
