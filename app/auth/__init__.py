"""Who is calling: keys, tokens, the guard on every route, the token endpoint.

The names of the guard are imported at their first use, so that a command that needs only keys does not load Authlib.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from app.auth.guard import Auth, Principal, auth, principal, require

__all__ = ["Auth", "Principal", "auth", "principal", "require"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(name)
    from app.auth import guard

    return getattr(guard, name)
