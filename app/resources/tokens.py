"""Access tokens for devices, and the keys to verify them with."""

from __future__ import annotations

from typing import Any

import marshmallow as ma
from flask import Response, jsonify

from app.api import problems, scopes
from app.api.bodies import Blueprint
from app.api.openapi import documented
from app.auth import auth, token_endpoint

blp = Blueprint("tokens", __name__, description="Access tokens for devices (OAuth 2.0 client credentials).")

ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
FORM = {
    "type": "object",
    "required": ["grant_type", "client_assertion_type", "client_assertion"],
    "properties": {
        "grant_type": {"type": "string", "enum": ["client_credentials"]},
        "client_assertion_type": {"type": "string", "enum": [ASSERTION_TYPE]},
        "client_assertion": {
            "type": "string",
            "description": "RFC 7523: `iss` and `sub` the device_id, `aud` the issuer or this address, `exp` at most "
            "5 minutes away, `jti` used once; signed with the device's key.",
        },
        "scope": {"type": "string", "description": "Any of: " + " ".join(scopes.WRITE) + ". Left out: all."},
    },
}


class TokenResponse(ma.Schema):
    """RFC 6749, section 5.1."""

    access_token = ma.fields.String(required=True)
    token_type = ma.fields.String(required=True)
    expires_in = ma.fields.Integer(required=True, metadata={"description": "Seconds."})
    scope = ma.fields.String(required=True)


class TokenError(problems.ProblemSchema):
    """RFC 6749, section 5.2, with the members of RFC 9457."""

    error = ma.fields.String(required=True)
    error_description = ma.fields.String(required=True)


_ERROR = {"description": "Refused", "content": {"application/json": {"schema": TokenError}}}


@blp.route("/api/auth/token", methods=["POST"])
@documented(
    requestBody={"required": True, "content": {"application/x-www-form-urlencoded": {"schema": FORM}}},
    responses={
        "400": _ERROR,
        "401": _ERROR,
        "413": "Problem413",
        "429": "Problem429",
        "500": "Problem500",
        "503": "Problem503",
    },
    description="Guarded by the client assertion that it carries.",
)
@blp.response(200, TokenResponse())
def issue() -> Response:
    """Give a device an access token for a signed client assertion."""
    return token_endpoint.respond()


@blp.route("/.well-known/oauth-authorization-server")
@documented(responses={"200": {"description": "OK", "content": {"application/json": {"schema": {"type": "object"}}}}})
def authorization_server() -> Any:
    """What a client needs to get a token (RFC 8414)."""
    response = jsonify(auth.metadata())
    response.headers["Cache-Control"] = "max-age=300"
    return response


@blp.route("/.well-known/jwks.json")
@documented(responses={"200": {"description": "OK", "content": {"application/json": {"schema": {"type": "object"}}}}})
def jwks() -> Any:
    """The public signing keys, as a JWKS (RFC 7517)."""
    response = jsonify(auth.keys.verifying.as_dict(private=False))
    response.headers["Cache-Control"] = "max-age=300"
    return response
