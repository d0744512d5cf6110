"""Proof that a registration comes from the holder of the private key: a JWT signed with it (as in RFC 7523)."""

from __future__ import annotations

import time
from typing import Any

from app.api.text import is_name
from app.auth import jws
from app.auth.device_keys import DeviceKey

MAX_PROOF_SECONDS = 300


def check(proof: str, device_id: str, key: DeviceKey, audience: str) -> None:
    """Raises TokenRefused unless the proof is signed with the key, for this device and this address, and fresh.

    audience: the URL of the registration. The same proof may be sent again with the same registration: a client repeats
    after a broken connection, and whoever reads a proof gains nothing without an enrolment.
    """
    header, claims = jws.verified(proof, key.jwk, key.algorithm)
    if header.get("typ", "JWT").lower() != "jwt":
        raise jws.TokenRefused("Not a proof.")
    now = time.time()
    jws.check_times(claims, now)
    if claims["exp"] > now + MAX_PROOF_SECONDS + jws.LEEWAY_SECONDS:
        raise jws.TokenRefused("Claim exp must be at most 5 minutes away.")
    if claims.get("iss") != device_id or claims.get("sub") != device_id:
        raise jws.TokenRefused("Claims iss and sub must be the device_id.")
    if not is_name(claims.get("jti")):
        raise jws.TokenRefused("Claim jti must be a string of 1 to 256 characters.")
    if _single(claims.get("aud")) != audience:
        raise jws.TokenRefused("Claim aud must be the URL of the registration alone.")


def _single(value: Any) -> Any:
    return value[0] if isinstance(value, list) and len(value) == 1 else value
