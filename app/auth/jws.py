"""Signed tokens as text: taken apart without trusting a byte, and verified with one pinned algorithm.

JWS compact serialization (RFC 7515), JWT (RFC 7519), with RFC 8725's advice.
"""

from __future__ import annotations

import binascii
import re
import warnings
from base64 import urlsafe_b64decode
from typing import Any

from joserfc import jwt
from joserfc.errors import JoseError, SecurityWarning
from joserfc.jwk import Key, KeySet
from joserfc.jws import JWSRegistry

from app.api import json_values

MAX_TOKEN = 8192
# Everything that could name a key (jku, x5u, jwk, x5c) or change the rules (crit, b64) is refused.
HEADERS = {"alg", "typ", "kid"}
LEEWAY_SECONDS = 60
# base64url without padding (RFC 7515, section 2). Bits of the last character that carry nothing are zero (RFC 4648,
# section 3.5): so what was signed once has one spelling.
_PART = "(?:[A-Za-z0-9_-]{4})*(?:[A-Za-z0-9_-]{4}|[A-Za-z0-9_-][AQgw]|[A-Za-z0-9_-]{2}[AEIMQUYcgkosw048])"
_FORM = re.compile(rf"{_PART}\.{_PART}\.{_PART}")

# RFC 9864 gives EdDSA with Ed25519 a new name; devices go on using the old one (RFC 8037).
warnings.filterwarnings("ignore", message=".*EdDSA", category=SecurityWarning)


class TokenRefused(ValueError):
    """Not a token that can be accepted. The message is constant text.

    reason: what operators count refusals by; one word of a few.
    """

    def __init__(self, message: str, reason: str = "claims") -> None:
        super().__init__(message)
        self.reason = reason


def unverified(text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and claims of a token whose signature is not checked. Raises TokenRefused."""
    if len(text) > MAX_TOKEN or not _FORM.fullmatch(text):
        raise TokenRefused("Not a signed token.", "malformed")
    header, claims, _signature = text.split(".")
    return _object(header), _object(claims)


def verified(text: str, key: Key | KeySet, algorithm: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and claims of a token signed by the key with this algorithm. Raises TokenRefused."""
    header, claims = unverified(text)
    if not set(header) <= HEADERS or not all(isinstance(value, str) for value in header.values()):
        raise TokenRefused("Not an accepted header.", "header")
    if header.get("alg") != algorithm:
        raise TokenRefused("Not the algorithm of the key.", "algorithm")
    try:
        jwt.decode(text, key, algorithms=[algorithm], registry=JWSRegistry(algorithms=[algorithm]))
    except (JoseError, ValueError, TypeError):
        raise TokenRefused("The signature is not valid.", "signature") from None
    return header, claims


def check_times(claims: dict[str, Any], now: float) -> None:
    """exp must be there and to come, nbf and iat past, with the leeway (RFC 7519, section 4.1). Raises TokenRefused."""
    for name in ("exp", "nbf", "iat"):
        if name not in claims and name != "exp":
            continue
        value = claims.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TokenRefused(f"Claim {name} must be a number.")
        if name == "exp" and value <= now - LEEWAY_SECONDS:
            raise TokenRefused("The token has expired.", "expired")
        if name != "exp" and value > now + LEEWAY_SECONDS:
            raise TokenRefused("The token is not valid yet.", "not_yet_valid")


def is_name(value: Any, longest: int = 256) -> bool:
    """Whether a claim is printable ASCII text of a bounded length."""
    return isinstance(value, str) and 0 < len(value) <= longest and value.isascii() and value.isprintable()


def _object(part: str) -> dict[str, Any]:
    try:
        decoded = urlsafe_b64decode(part + "=" * (-len(part) % 4))
        # A body's broken characters are mended, a token's are not.
        decoded.decode("utf-8")
        value, suspicious = json_values.parse(decoded, MAX_TOKEN)
    except (ValueError, binascii.Error):
        raise TokenRefused("Not a signed token.", "malformed") from None
    if not isinstance(value, dict) or (suspicious and any(json_values.violations(value))):
        raise TokenRefused("Not a signed token.", "malformed")
    return value
