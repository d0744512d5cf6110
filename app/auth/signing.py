"""Access tokens are made here, for devices' enrolments, readers and operators (RFC 9068)."""

from __future__ import annotations

import time
from typing import Any

from joserfc import jwt

from app.auth.keys import SIGNING_ALGORITHM, SigningKeys


def access_token(
    keys: SigningKeys, issuer: str, subject: str, token_id: str, scope: str, seconds: int, **claims: Any
) -> str:
    """Sign an access token that is valid for so many seconds from now.

    issuer: also the audience. scope: names, separated by spaces. Raises SigningKeysUnavailable.
    """
    now = int(time.time())
    return jwt.encode(
        {"alg": SIGNING_ALGORITHM, "typ": "at+jwt"},
        {
            "iss": issuer,
            "aud": issuer,
            "sub": subject,
            "client_id": subject,
            "iat": now,
            "exp": now + seconds,
            "jti": token_id,
            "scope": scope,
            **claims,
        },
        keys.signing,
        algorithms=[SIGNING_ALGORITHM],
    )
