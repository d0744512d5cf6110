"""Who is speaking: keys, tokens, the guard on every route, the token endpoint."""

from app.auth.guard import AccessToken, Auth, auth, require, token

__all__ = ["AccessToken", "Auth", "auth", "require", "token"]
