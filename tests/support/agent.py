"""An agent as tests and the demonstration need one: a device with a key of its own."""

from __future__ import annotations

import time
import uuid
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from joserfc import jwt
from joserfc.jwk import ECKey, OKPKey, RSAKey

ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
# Of the application that tests call in their own process.
ISSUER = "http://watchpost.test"
TOKEN_ENDPOINT = ISSUER + "/api/auth/token"
ALGORITHMS = {"EC": "ES256", "RSA": "RS256", "OKP": "EdDSA"}


class Agent:
    """A device.

    device_id: its id. key: its private key, EC P-256 unless another is given.
    """

    def __init__(self, device_id: str | None = None, key: ECKey | RSAKey | OKPKey | None = None) -> None:
        self.device_id = device_id or f"laptop-{uuid.uuid4().hex[:12]}"
        self.key = key or ECKey.generate_key("P-256")

    @property
    def public_key_pem(self) -> str:
        return self.key.get_op_key("verify").public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()

    def registration(self, **more: Any) -> dict[str, Any]:
        """The body of POST /api/devices/register."""
        return {
            "device_id": self.device_id,
            "public_key_pem": self.public_key_pem,
            "hostname": f"host-of-{self.device_id}",
            **more,
        }

    def proven(self, issuer: str = ISSUER, **more: Any) -> dict[str, Any]:
        """The same with a proof that the device holds its key."""
        return self.registration(proof=self.assertion(f"{issuer}/api/devices/register"), **more)

    def assertion(self, audience: str, header: dict[str, Any] | None = None, **claims: Any) -> str:
        """A signed client assertion (RFC 7523); a claim given as None is left out."""
        now = int(time.time())
        all_claims = {
            "iss": self.device_id,
            "sub": self.device_id,
            "aud": audience,
            "iat": now,
            "exp": now + 60,
            "jti": uuid.uuid4().hex,
            **claims,
        }
        algorithm = ALGORITHMS[self.key.key_type]
        return jwt.encode(
            {"alg": algorithm, **(header or {})},
            {name: value for name, value in all_claims.items() if value is not None},
            self.key,
            algorithms=[algorithm],
        )

    def token_request(self, audience: str, scope: str | None = None, **claims: Any) -> dict[str, str]:
        """The form of POST /api/auth/token."""
        form = {
            "grant_type": "client_credentials",
            "client_assertion_type": ASSERTION_TYPE,
            "client_assertion": self.assertion(audience, **claims),
        }
        return form | ({"scope": scope} if scope is not None else {})
