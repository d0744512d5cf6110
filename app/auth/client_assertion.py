"""Client authentication at the token endpoint: a JWT signed with the device's key (RFC 7521, RFC 7523)."""

from __future__ import annotations

import contextlib
import time
import uuid
from typing import Any

from authlib.oauth2.rfc6749.errors import InvalidClientError
from authlib.oauth2.rfc6749.grants import ClientCredentialsGrant
from authlib.oauth2.rfc7523 import JWTBearerClientAssertion
from flask import g, request

from app.api import scopes
from app.auth import jws
from app.auth.device_keys import DUMMY_KEYS, DeviceKey, device_key
from app.auth.guard import auth
from app.auth.keys import SIGNING_ALGORITHM
from app.db import db, statement
from app.limits.rates import limits

SELECT_KEY = statement("devices/select_key")
USE_ASSERTION = statement("auth/use_assertion")

MAX_ASSERTION_SECONDS = 300
FAILED = "Client authentication failed."


class DeviceClient:
    """A device as an OAuth client (Authlib's ClientMixin)."""

    def __init__(self, device_id: str, key: DeviceKey, revoked: bool) -> None:
        self.device_id = device_id
        self.key = key
        self.revoked = revoked

    def get_client_id(self) -> str:
        return self.device_id

    def check_grant_type(self, grant_type: str) -> bool:
        return bool(grant_type == ClientCredentialsGrant.GRANT_TYPE)

    def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:
        return bool(method == JWTBearerClientAssertion.CLIENT_AUTH_METHOD)

    def get_allowed_scope(self, scope: str | None) -> str:
        """Return the requested scopes that a device may have, each once; all of them when none is requested."""
        requested = (scope or "").split() or scopes.WRITE
        return " ".join(dict.fromkeys(name for name in requested if name in scopes.WRITE))


def query_client(device_id: str) -> DeviceClient | None:
    """Return the device, or None when the id is not valid.

    An unknown device gets a dummy key, so that refusal takes equally long.
    """
    if not jws.is_name(device_id, 128):
        return None
    [found] = db.run(SELECT_KEY, device_id=device_id, dummy_key=DUMMY_KEYS[SIGNING_ALGORITHM].pem)
    if not found["is_known"]:
        g.refused = "unknown_device"
    return DeviceClient(device_id, device_key(found["public_key_pem"]), found["is_revoked"])


class ClientAssertion(JWTBearerClientAssertion):
    """Authlib's RFC 7523 client authentication, with checks of the header, the lifetime and the single use of `jti`.

    Until the signature is verified, every failure has the same text and takes equally long, so that a stranger learns
    neither which devices exist nor the type of a device's key.
    """

    def extract_assertion(self, assertion: str) -> tuple[dict[str, Any], dict[str, Any]]:
        try:
            return jws.unverified(assertion)
        except jws.TokenRefused as refusal:
            g.refused = refusal.reason
            raise InvalidClientError(description=FAILED) from None

    def __call__(self, query_client: Any, request: Any) -> Any:
        try:
            return super().__call__(query_client, request)
        except InvalidClientError as error:
            # Authlib's own text tells an unknown client from a wrong signature.
            if request.client is None:
                raise InvalidClientError(description=FAILED) from None
            raise error

    def resolve_client_public_key(self, client: DeviceClient) -> Any:
        # The DeviceKey itself: process_assertion_claims needs its algorithm too.
        return client.key

    def process_assertion_claims(self, assertion: str, resolve_key: Any) -> dict[str, Any]:
        key: DeviceKey = resolve_key
        algorithm = jws.unverified(assertion)[0].get("alg")
        if isinstance(algorithm, str) and algorithm != key.algorithm and algorithm in DUMMY_KEYS:
            # Refused below. Without this verification, the time would tell that the key is of another type.
            with contextlib.suppress(jws.TokenRefused):
                jws.verified(assertion, DUMMY_KEYS[algorithm].jwk, algorithm)
        try:
            header, claims = jws.verified(assertion, key.jwk, key.algorithm)
        except jws.TokenRefused as refusal:
            g.setdefault("refused", refusal.reason)
            raise InvalidClientError(description=FAILED) from None
        limits.count(str(claims.get("sub"))[:128], "token")
        try:
            self._check(header, claims)
        except jws.TokenRefused as refusal:
            g.refused = refusal.reason
            raise InvalidClientError(description=str(refusal)) from None
        self.verify_claims(claims)
        return claims

    def _check(self, header: dict[str, Any], claims: dict[str, Any]) -> None:
        if header.get("typ", "JWT").lower() not in ("jwt", "client-authentication+jwt"):
            raise jws.TokenRefused("Not a client assertion.")
        now = time.time()
        jws.check_times(claims, now)
        if claims["exp"] > now + MAX_ASSERTION_SECONDS + jws.LEEWAY_SECONDS:
            raise jws.TokenRefused("Claim exp must be at most 5 minutes away.")
        for name in ("iss", "sub", "jti"):
            if not jws.is_name(claims.get(name)):
                raise jws.TokenRefused(f"Claim {name} must be a string of 1 to 256 characters.")
        # RFC 7521, section 4.2: a client_id beside the assertion must name the same client.
        if request.form.get("client_id", claims["sub"]) != claims["sub"]:
            raise jws.TokenRefused("The client_id is not the assertion's.")
        audience = claims.get("aud")
        audiences = audience if isinstance(audience, list) else [audience]
        if not all(isinstance(value, str) for value in audiences):
            raise jws.TokenRefused("Claim aud must be a string or a list of strings.")
        # Authlib accepts a list that also names another server, which could then replay the assertion here.
        if not audiences or not set(audiences) <= set(self.get_audiences()):
            raise jws.TokenRefused("Claim aud must name this service alone.")

    def get_audiences(self) -> list[str]:
        return [auth.token_endpoint, auth.issuer]

    def validate_jti(self, claims: dict[str, Any], jti: str) -> bool:
        expires_at = claims["exp"] + jws.LEEWAY_SECONDS
        use = {"device_id": claims["sub"], "jti": jti, "use_id": uuid.uuid4(), "expires_at": expires_at}
        is_new = bool(db.run(USE_ASSERTION, **use))
        if not is_new:
            g.refused = "replayed"
        return is_new

    def authenticate_client(self, client: DeviceClient) -> DeviceClient:
        if client.revoked:
            g.refused = "revoked"
            raise InvalidClientError(description="The device is revoked.")
        return client
