"""The token endpoint: OAuth 2.0 client credentials with a client assertion (RFC 6749, RFC 7523, RFC 9068)."""

from __future__ import annotations

import logging
from typing import Any

from authlib.integrations.flask_oauth2 import AuthorizationServer
from authlib.oauth2.rfc6749 import OAuth2Request
from authlib.oauth2.rfc6749.errors import (
    InvalidClientError,
    InvalidRequestError,
    InvalidScopeError,
    OAuth2Error,
    UnsupportedGrantTypeError,
)
from authlib.oauth2.rfc6749.grants import ClientCredentialsGrant
from authlib.oauth2.rfc6749.requests import BasicOAuth2Payload
from authlib.oauth2.rfc9068 import JWTBearerTokenGenerator
from flask import Flask, Response, current_app, g, json
from flask import request as flask_request
from joserfc.jwk import KeySet
from werkzeug.datastructures import MultiDict

from app.api import problems, scopes
from app.auth import jws
from app.auth.client_assertion import ClientAssertion, DeviceClient, query_client
from app.auth.guard import auth
from app.auth.keys import SIGNING_ALGORITHM, SigningKeysUnavailable
from app.limits.admission import NORMAL, acquire_slots
from app.limits.rates import limits
from app.telemetry import metrics

log = logging.getLogger(__name__)

MAX_FORM = 32 * 1024
FORM = "application/x-www-form-urlencoded"


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


class _TokenRequest(OAuth2Request):
    """The current request to Authlib: its parameters count in the form alone (RFC 6749, section 2.3.1)."""

    def __init__(self) -> None:
        # The public address: Authlib requires https, and a proxy may terminate TLS.
        super().__init__(flask_request.method, auth.token_endpoint, headers=flask_request.headers)
        self.payload = BasicOAuth2Payload(flask_request.form)

    @property
    def args(self) -> Any:
        return {}

    @property
    def form(self) -> Any:
        return flask_request.form


class TokenEndpoint(AuthorizationServer):
    """Authlib's authorization server with one grant, one client authentication method, and our error bodies."""

    def init_app(self, app: Flask, query_client: Any = None, save_token: Any = None) -> None:
        super().init_app(app, query_client, save_token)
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

    def validate_requested_scope(self, scope: str | None) -> None:
        """Raise InvalidScopeError when scopes are requested and a device may have none of them."""
        if (requested := (scope or "").split()) and not set(requested) & set(scopes.WRITE):
            raise InvalidScopeError(description="None of these scopes is for devices.")

    def create_token_response(self, request: Any = None) -> Response:
        error: OAuth2Error | None = None
        form = flask_request.form if flask_request.mimetype == FORM else MultiDict()
        if flask_request.mimetype != FORM:
            error = InvalidRequestError(description=f"Content-Type must be {FORM}.")
        elif not form.get("grant_type"):
            error = InvalidRequestError(description="The form lacks grant_type.")
        elif any(len(form.getlist(name)) > 1 for name in form):
            error = InvalidRequestError(description="A parameter is repeated.")
        elif form["grant_type"] == ClientCredentialsGrant.GRANT_TYPE and not form.get("client_assertion"):
            error = InvalidClientError(description="The form lacks client_assertion.")
        if error is not None:
            return self.handle_error_response(None, error)
        response: Response = super().create_token_response(request)
        return response

    def handle_response(self, status_code: int, payload: Any, headers: Any) -> Response:
        return Response(json.dumps(payload), status_code, headers)

    def handle_error_response(self, request: Any, error: OAuth2Error) -> Response:
        """Return an error body with the members of RFC 6749, section 5.2, and of RFC 9457."""
        metrics.token_refused("assertion", g.pop("refused", error.error))
        status = 401 if isinstance(error, InvalidClientError) else 400
        description = error.get_error_description() or "The request was refused."
        if isinstance(error, UnsupportedGrantTypeError):
            # Authlib's own text quotes the request.
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
    """Answer the current request to the token endpoint. Raises Problem 413, 429, 503."""
    # Well above the size of an assertion, and a small cost when a stranger sends it.
    flask_request.max_content_length = flask_request.max_form_memory_size = MAX_FORM
    limits.check_address()
    endpoint: TokenEndpoint = current_app.extensions["token_endpoint"]
    with acquire_slots(limits.admission, NORMAL, MAX_FORM) as g.slots:
        # A client that sends slowly holds its slots for long: one address may not hold everybody's.
        g.slots.charge(f"address {limits.address()}")
        response = endpoint.create_token_response()
    if response.status_code >= 400:
        limits.refused()
    return response


def init_app(app: Flask) -> None:
    """Add the token endpoint, and the answer while there are no signing keys. Reads the keys, if there are any."""
    app.extensions["auth"].keys.preload()
    app.register_error_handler(SigningKeysUnavailable, _without_keys)
    TokenEndpoint().init_app(app, query_client, _discard)


def signing_keys_unavailable() -> problems.Problem:
    """The refusal while the signing-key file can't be used."""
    return problems.Problem(
        503,
        "signing-keys-unavailable",
        "Service unavailable",
        "The signing-key file (WATCHPOST_SIGNING_KEYS) is missing, empty or half-written.",
        headers={"Retry-After": str(problems.RETRY_SECONDS)},
    )


def _without_keys(error: Exception) -> Response:
    log.error("no signing keys: %s", error)
    return problems.respond(signing_keys_unavailable())


def _discard(token: dict[str, Any], request: Any) -> None:
    """Authlib requires a function that saves a token. Access tokens are self-contained, so none is saved."""
