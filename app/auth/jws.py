"""Parsing and verification of signed tokens: every byte is untrusted, and the algorithm is pinned.

JWS compact serialization (RFC 7515), JWT (RFC 7519), best current practice (RFC 8725).
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
from app.api.text import is_name as is_name

MAX_TOKEN = 8192
# Header members that bring a key or change how the token is read. Members that do neither (x5t, cty, ...) are ignored.
REFUSED_HEADERS = {"jku", "jwk", "x5u", "x5c", "crit", "b64", "zip"}
LEEWAY_SECONDS = 60
# base64url without padding (RFC 7515, section 2). Unused bits of the last character must be zero (RFC 4648,
# section 3.5), so that a token has exactly one spelling.
_PART = "(?:[A-Za-z0-9_-]{4})*(?:[A-Za-z0-9_-]{4}|[A-Za-z0-9_-][AQgw]|[A-Za-z0-9_-]{2}[AEIMQUYcgkosw048])"
_FORM = re.compile(rf"{_PART}\.{_PART}\.{_PART}")

# joserfc warns that RFC 9864 renames EdDSA with Ed25519; devices use the name of RFC 8037.
warnings.filterwarnings("ignore", message=".*EdDSA", category=SecurityWarning)


class TokenRefused(ValueError):
    """The token is not accepted. The message is constant text and quotes nothing of the token.

    reason: label of the metric `watchpost_tokens_refused`: one of a fixed set of words.
    """

    def __init__(self, message: str, reason: str = "claims") -> None:
        super().__init__(message)
        self.reason = reason


class _Registry(JWSRegistry):
    """joserfc's registry, without its check of the header: `verified` makes that check first, by our own rules."""

    max_header_length = MAX_TOKEN

    def check_header(self, header: Any) -> None:
        pass


def unverified(text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return header and claims of a token without a check of its signature. Raises TokenRefused."""
    if len(text) > MAX_TOKEN or not _FORM.fullmatch(text):
        raise TokenRefused("Not a signed token.", "malformed")
    header, claims, _signature = text.split(".")
    return _object(header), _object(claims)


def verified(text: str, key: Key | KeySet, algorithm: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return header and claims of a token that the key signed with this algorithm. Raises TokenRefused."""
    header, claims = unverified(text)
    if not REFUSED_HEADERS.isdisjoint(header) or not all(
        isinstance(header.get(name, ""), str) for name in ("alg", "typ", "kid")
    ):
        raise TokenRefused("Not an accepted header.", "header")
    if header.get("alg") != algorithm:
        raise TokenRefused("Not the algorithm of the key.", "algorithm")
    try:
        jwt.decode(text, key, algorithms=[algorithm], registry=_Registry(algorithms=[algorithm]))
    except (JoseError, ValueError, TypeError):
        raise TokenRefused("The signature is not valid.", "signature") from None
    return header, claims


def check_times(claims: dict[str, Any], now: float) -> None:
    """Check `exp` (required), `nbf` and `iat` against now, in epoch seconds (RFC 7519, section 4.1).

    LEEWAY_SECONDS of clock skew are allowed. Raises TokenRefused.
    """
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


def _object(part: str) -> dict[str, Any]:
    try:
        decoded = urlsafe_b64decode(part + "=" * (-len(part) % 4))
        # A body's broken characters are mended, a token's are not.
        decoded.decode("utf-8")
        value, may_have_violations = json_values.parse(decoded, MAX_TOKEN)
    except (ValueError, binascii.Error):
        raise TokenRefused("Not a signed token.", "malformed") from None
    if not isinstance(value, dict) or (may_have_violations and any(json_values.violations(value))):
        raise TokenRefused("Not a signed token.", "malformed")
    return value
