"""The token endpoint: OAuth 2.0 client credentials with a client assertion (RFC 6749, RFC 7523, RFC 9068)."""

from __future__ import annotations

import contextlib
import time
import uuid
from typing import Any

from authlib.integrations.flask_oauth2 import AuthorizationServer
from authlib.integrations.flask_oauth2.requests import (
    FlaskOAuth2Payload,
    FlaskOAuth2Request,
)
from authlib.oauth2.rfc6749 import OAuth2Request
from authlib.oauth2.rfc6749.errors import (
    InvalidClientError,
    InvalidRequestError,
    OAuth2Error,
    UnsupportedGrantTypeError,
)
from authlib.oauth2.rfc6749.grants import ClientCredentialsGrant
from authlib.oauth2.rfc7523 import JWTBearerClientAssertion
from authlib.oauth2.rfc9068 import JWTBearerTokenGenerator
from flask import Flask, Response, current_app, g, json
from flask import request as flask_request
from joserfc.jwk import KeySet
from werkzeug.datastructures import MultiDict

from app import metrics, scopes
from app.auth import jws
from app.auth.guard import auth
from app.auth.keys import NOBODYS_KEYS, SIGNING_ALGORITHM, DeviceKey, device_key
from app.db import db, statement
from app.limits import REPORTS, limits, take_places

SELECT_KEY = statement("devices/select_key")
USE_ASSERTION = statement("auth/use_assertion")

LONGEST_ASSERTION_SECONDS = 300
LARGEST_FORM = 32 * 1024
FORM = "application/x-www-form-urlencoded"
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
        """What was asked for, once each; without a scope, all that a device may have."""
        return " ".join(dict.fromkeys((scope or "").split() or scopes.WRITE))


def query_client(device_id: str) -> DeviceClient | None:
    """The device. One that there is not gets a key that nobody has, so that to refuse it takes as long."""
    if not jws.is_name(device_id, 128):
        return None
    [found] = db.run(SELECT_KEY, device_id=device_id, dummy_key=NOBODYS_KEYS[SIGNING_ALGORITHM].pem)
    if not found["is_known"]:
        g.refused = "unknown_device"
    return DeviceClient(device_id, device_key(found["public_key_pem"]), found["is_revoked"])


class ClientAssertion(JWTBearerClientAssertion):
    """Authlib's RFC 7523 client authentication, with what it leaves to us: headers, lifetimes, each jti once.

    Until the signature is verified every failure reads the same and takes the same time, so that nobody learns which
    devices exist, nor what kind of key one has.
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
            # Authlib tells an unknown client from a wrong signature; strangers must not.
            if request.client is None:
                raise InvalidClientError(description=FAILED) from None
            raise error

    def resolve_client_public_key(self, client: DeviceClient) -> Any:
        # The DeviceKey itself: process_assertion_claims needs its algorithm too.
        return client.key

    def process_assertion_claims(self, assertion: str, resolve_key: Any) -> dict[str, Any]:
        key: DeviceKey = resolve_key
        algorithm = jws.unverified(assertion)[0].get("alg")
        if isinstance(algorithm, str) and algorithm != key.algorithm and algorithm in NOBODYS_KEYS:
            # It is refused below; the time it takes must not tell that the key is of another kind.
            with contextlib.suppress(jws.TokenRefused):
                jws.verified(assertion, NOBODYS_KEYS[algorithm].jwk, algorithm)
        try:
            header, claims = jws.verified(assertion, key.jwk, key.algorithm)
        except jws.TokenRefused as refusal:
            g.setdefault("refused", refusal.reason)
            raise InvalidClientError(description=FAILED) from None
        limits.count(str(claims.get("sub"))[:128], None)
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
        if claims["exp"] > now + LONGEST_ASSERTION_SECONDS + jws.LEEWAY_SECONDS:
            raise jws.TokenRefused("Claim exp must be at most 5 minutes away.")
        for name in ("iss", "sub", "jti"):
            if not jws.is_name(claims.get(name)):
                raise jws.TokenRefused(f"Claim {name} must be a string of 1 to 256 characters.")
        # RFC 7521, section 4.2: a client_id beside the assertion must be the same client's.
        if flask_request.form.get("client_id", claims["sub"]) != claims["sub"]:
            raise jws.TokenRefused("The client_id is not the assertion's.")
        audience = claims.get("aud")
        audiences = audience if isinstance(audience, list) else [audience]
        if not all(isinstance(value, str) for value in audiences):
            raise jws.TokenRefused("Claim aud must be a string or a list of strings.")

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


class ClientCredentials(ClientCredentialsGrant):
    TOKEN_ENDPOINT_AUTH_METHODS = [ClientAssertion.CLIENT_AUTH_METHOD]


class AccessTokens(JWTBearerTokenGenerator):
    """Authlib's RFC 9068 generator, bound to the device's key (RFC 7800)."""

    def get_jwks(self) -> KeySet:
        return auth.keys.signing

    def get_audiences(self, client: DeviceClient, user: Any, scope: str) -> str:
        return auth.issuer

    def get_extra_claims(self, client: DeviceClient, grant_type: str, user: Any, scope: str) -> dict[str, Any]:
        return {"cnf": {"jkt": client.key.thumbprint}}


class _FormOnly(FlaskOAuth2Payload):
    @property
    def data(self) -> Any:
        return self._request.form


class _TokenRequest(FlaskOAuth2Request):
    def __init__(self) -> None:
        # The public address: a proxy may have ended TLS before us, and Authlib insists on it.
        OAuth2Request.__init__(self, flask_request.method, auth.token_endpoint, headers=flask_request.headers)
        self._request = flask_request
        self.payload = _FormOnly(flask_request)


class TokenEndpoint(AuthorizationServer):
    """Authlib's authorization server, with one grant, one way to authenticate, and our errors."""

    def init_app(self, app: Flask, query_client: Any = None, save_token: Any = None) -> None:
        super().init_app(app, query_client, save_token)
        self.scopes_supported = list(scopes.WRITE)
        settings = app.extensions["auth"].settings
        self.register_token_generator(
            "default",
            AccessTokens(settings.issuer, SIGNING_ALGORITHM, expires_generator=settings.access_token_seconds),
        )
        self.register_grant(ClientCredentials)
        self.register_client_auth_method(ClientAssertion.CLIENT_AUTH_METHOD, ClientAssertion(leeway=jws.LEEWAY_SECONDS))
        app.extensions["token_endpoint"] = self

    def create_oauth2_request(self, request: Any) -> _TokenRequest:
        return _TokenRequest()

    def create_token_response(self, request: Any = None) -> Response:
        error: OAuth2Error | None = None
        form = flask_request.form if flask_request.mimetype == FORM else MultiDict()
        if flask_request.mimetype != FORM:
            error = InvalidRequestError(description=f"Content-Type must be {FORM}.")
        elif not form.get("grant_type"):
            error = InvalidRequestError(description="The form lacks grant_type.")
        elif any(len(form.getlist(name)) > 1 for name in form):
            error = InvalidRequestError(description="A parameter stands twice.")
        elif form["grant_type"] == ClientCredentialsGrant.GRANT_TYPE and not form.get("client_assertion"):
            error = InvalidClientError(description="The form lacks client_assertion.")
        if error is not None:
            return self.handle_error_response(None, error)
        response: Response = super().create_token_response(request)
        return response

    def handle_response(self, status_code: int, payload: Any, headers: Any) -> Response:
        return Response(json.dumps(payload), status_code, headers)

    def handle_error_response(self, request: Any, error: OAuth2Error) -> Response:
        """RFC 6749, section 5.2, with the members of RFC 9457 beside it."""
        metrics.token_refused("assertion", g.pop("refused", error.error))
        status = 401 if isinstance(error, InvalidClientError) else 400
        description = error.get_error_description() or "The request was refused."
        if isinstance(error, UnsupportedGrantTypeError):
            # Authlib quotes what was sent.
            description = "The grant_type must be client_credentials."
        body = {
            "error": error.error,
            "error_description": description,
            "type": f"urn:watchpost:problem:{str(error.error).replace('_', '-')}",
            "title": "Unauthorized" if status == 401 else "Bad Request",
            "status": status,
            "detail": description,
            "request_id": g.get("request_id", ""),
        }
        response = Response(json.dumps(body), status, content_type="application/json")
        response.headers["Cache-Control"] = "no-store"
        if status == 401:
            challenge = f'Bearer error="{error.error}", error_description="{description}"'
            response.headers["WWW-Authenticate"] = challenge
        return response


def respond() -> Response:
    # Far more than an assertion needs, and little enough for strangers to make us parse.
    flask_request.max_content_length = flask_request.max_form_memory_size = LARGEST_FORM
    limits.check_address()
    endpoint: TokenEndpoint = current_app.extensions["token_endpoint"]
    with take_places(REPORTS, LARGEST_FORM) as g.places:
        response = endpoint.create_token_response()
    if response.status_code >= 400:
        limits.refused()
    return response


def init_app(app: Flask) -> None:
    TokenEndpoint().init_app(app, query_client, _forget)


def _forget(token: dict[str, Any], request: Any) -> None:
    """Access tokens are not stored: they carry what is needed to verify them."""
