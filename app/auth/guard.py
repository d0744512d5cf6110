"""The guard on every route: Authlib's ResourceProtector with a validator of RFC 9068 access tokens."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

from authlib.integrations.flask_oauth2 import ResourceProtector
from authlib.oauth2 import OAuth2Error
from authlib.oauth2.rfc6750.errors import InsufficientScopeError, InvalidTokenError
from authlib.oauth2.rfc9068 import JWTBearerTokenValidator
from flask import Flask, current_app, g, request
from werkzeug.local import LocalProxy

from app.api import problems, scopes
from app.api.bodies import MAX_BODY
from app.api.openapi import documented
from app.api.scopes import REGISTER
from app.auth import jws
from app.auth.keys import SIGNING_ALGORITHM, SigningKeys
from app.auth.signing import access_token
from app.limits.admission import CRITICAL, Slots, acquire_slots
from app.limits.rates import Limits, limits
from app.telemetry import metrics
from config.settings import Settings

View = TypeVar("View", bound=Callable[..., Any])


class Principal(NamedTuple):
    """What a verified token says.

    subject: the device_id, or who reads. id: its jti; of an enrolment token, the enrolment's id. key_thumbprint: of
    the device's key, from `cnf` (RFC 7800); None in enrolment and readers' tokens.
    """

    subject: str
    id: str
    scopes: frozenset[str]
    key_thumbprint: str | None
    expires_at: float

    def allows(self, *scopes: str) -> bool:
        """Whether the token has one of these scopes."""
        return not self.scopes.isdisjoint(scopes)


class Auth:
    """Keys, and tokens made and verified with them, of one application."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.issuer = settings.issuer
        self.token_endpoint = settings.issuer + "/api/auth/token"
        self.keys = SigningKeys(Path(settings.signing_keys_path))
        # The digest of a token's text -> what it says. In the order of arrival, so the oldest goes when it is full.
        self._cached_tokens: dict[bytes, Principal] = {}
        self._cached_keys: tuple[int, ...] = ()

    def init_app(self, app: Flask) -> None:
        app.extensions["auth"] = self

    def sign(self, subject: str, token_id: str, scope: str, seconds: int, **claims: Any) -> str:
        """Make an access token (RFC 9068) that is valid for so many seconds."""
        return access_token(self.keys, self.issuer, subject, token_id, scope, seconds, **claims)

    def metadata(self) -> dict[str, Any]:
        """The authorization server's metadata (RFC 8414, section 2)."""
        return {
            "issuer": self.issuer,
            "token_endpoint": self.token_endpoint,
            "jwks_uri": self.issuer + "/.well-known/jwks.json",
            "scopes_supported": list(scopes.WRITE),
            "response_types_supported": [],
            "grant_types_supported": ["client_credentials"],
            "token_endpoint_auth_methods_supported": ["private_key_jwt"],
            "token_endpoint_auth_signing_alg_values_supported": ["ES256", "RS256", "EdDSA"],
            "service_documentation": self.issuer + "/docs",
        }

    def cached(self, text: str) -> Principal | None:
        """What an access token says that was verified before and still is valid, else None."""
        version = self.keys.version
        if version != self._cached_keys:
            self._cached_tokens, self._cached_keys = {}, version
        token = self._cached_tokens.get(_digest(text))
        return token if token is not None and token.expires_at > time.time() - jws.LEEWAY_SECONDS else None

    def verify(self, text: str) -> Principal:
        """Verify an access token, or remember that it was verified. Raises TokenRefused."""
        token = self.cached(text)
        if token is None:
            # This memory, whatever becomes of the keys while the token is verified.
            cached = self._cached_tokens
            token = self._verify(text, time.time())
            while len(cached) >= max(1, self.settings.token_cache):
                cached.pop(next(iter(cached)), None)
            if self.settings.token_cache:
                cached[_digest(text)] = token
        return token

    def _verify(self, text: str, now: float) -> Principal:
        header, claims = jws.verified(text, self.keys.verifying, SIGNING_ALGORITHM)
        if header.get("typ", "").lower() not in ("at+jwt", "application/at+jwt"):
            raise jws.TokenRefused("Not an access token.")
        jws.check_times(claims, now)
        audience = claims.get("aud")
        if claims.get("iss") != self.issuer or self.issuer not in (
            audience if isinstance(audience, list) else [audience]
        ):
            raise jws.TokenRefused("The token is not for this service.")
        if not all(jws.is_name(claims.get(name)) for name in ("sub", "client_id", "jti")) or "iat" not in claims:
            raise jws.TokenRefused("A claim is missing.")
        scope = claims.get("scope", "")
        if not isinstance(scope, str) or len(scope) > 1000:
            raise jws.TokenRefused("Claim scope must be a string.")
        thumbprint = None
        if "cnf" in claims:
            thumbprint = claims["cnf"].get("jkt") if isinstance(claims["cnf"], dict) else None
            if not jws.is_name(thumbprint):
                raise jws.TokenRefused("Claim cnf must name a key.")
        return Principal(
            subject=claims["sub"],
            id=claims["jti"],
            scopes=_scopes(scope),
            key_thumbprint=thumbprint,
            expires_at=claims["exp"],
        )


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "replace")).digest()


@lru_cache(maxsize=1000)
def _scopes(text: str) -> frozenset[str]:
    # Equal sets are one object: there are few of them, and up to 100,000 cached tokens.
    return frozenset(text.split())


auth = cast(Auth, LocalProxy(lambda: current_app.extensions["auth"]))


class _Validator(JWTBearerTokenValidator):
    """Authlib's RFC 9068 validator, with the leeway, the pinned algorithm and the memory that it lacks."""

    def __init__(self) -> None:
        super().__init__(issuer=None, resource_server=None)

    def authenticate_token(self, token_string: str) -> Principal:
        try:
            return auth.verify(token_string)
        except jws.TokenRefused as refusal:
            g.refused = refusal.reason
            raise InvalidTokenError(description=str(refusal)) from None

    def validate_token(self, token: Principal, scopes: list[str], request: Any, **kwargs: Any) -> None:
        # A list means any of them.
        if not token.allows(*scopes):
            raise InsufficientScopeError()


class _Guard(ResourceProtector):
    def acquire_token(self, scopes: list[str] | None = None, **kwargs: Any) -> Principal:
        principal = g.principal = cast(Principal, self.validate_request(scopes=scopes, request=request))
        apply_rate_limit(principal, limits, g.slots)
        return principal

    def raise_error_response(self, error: OAuth2Error) -> None:
        metrics.token_refused("access", g.pop("refused", error.error))
        description = error.get_error_description() or "Authentication failed."
        challenge = f'Bearer error="{error.error}", error_description="{description}"'
        status = 403 if isinstance(error, InsufficientScopeError) else 401
        if status == 401:
            limits.refused()
        raise problems.Problem(
            status,
            str(error.error).replace("_", "-"),
            "Forbidden" if status == 403 else "Unauthorized",
            description,
            headers={"WWW-Authenticate": challenge},
        )


_guard = _Guard()
_guard.register_token_validator(_Validator())


def require(*scopes: str, priority: float = CRITICAL, max_size: int = MAX_BODY) -> Callable[[View], View]:
    """Let a view run only for a token with one of these scopes; answer 401, 403, 429 or 503 before the body is read.

    priority: the share of a worker's slots up to which it runs. max_size: bytes of its body, inflated.
    """

    def decorate(view: View) -> View:
        authorized = _guard(list(scopes))(view)

        @wraps(authorized)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            with acquire_slots(limits.admission, priority, max_size) as g.slots:
                try:
                    return authorized(*args, **kwargs)
                finally:
                    charge_size(limits, g.slots)

        guarded.scopes = scopes  # type: ignore[attr-defined]
        answers = {"401": "Problem401", "403": "Problem403", "429": "Problem429", "503": "Problem503"}
        needs = " or ".join(f"`{scope}`" for scope in scopes)
        described = documented(security=[{"bearer": list(scopes)}], description=f"Scope: {needs}.", responses=answers)
        return described(cast(View, guarded))

    return decorate


def apply_rate_limit(principal: Principal, limits: Limits, slots: Slots) -> None:
    """Count a request against its caller, and its slots as the caller's. Raises Problem 429."""
    if principal.allows(REGISTER):
        # One enrolment serves many laptops: they share its rate, while each address has slots of its own.
        limits.count_registration(principal.id)
        slots.charge(f"{principal.id} {limits.address()}")
        return
    limits.count(principal.subject, slots.priority)
    slots.charge(f"{principal.subject} {slots.priority}")


def charge_size(limits: Limits, slots: Slots) -> None:
    """Charge a large request to its device, whatever became of it: reading it cost as much."""
    principal: Principal | None = g.get("principal")
    if principal is not None and slots.is_large:
        limits.charge(principal.subject, slots.priority, slots.cost)


def principal() -> Principal:
    """The principal of the current request, on a guarded route."""
    return cast(Principal, g.principal)
