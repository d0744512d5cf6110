"""Who is speaking: keys, tokens, the guard on every route, the token endpoint."""

from app.auth.guard import Auth, Principal, auth, principal, require

__all__ = ["Auth", "Principal", "auth", "principal", "require"]
