"""The service's signing keys, in a JWKS file (RFC 7517)."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from joserfc.errors import JoseError
from joserfc.jwk import ECKey, KeySet

from app.files import make_folder, sync
from config.settings import Settings

log = logging.getLogger(__name__)

# Pinned: the header of a token never chooses the algorithm.
SIGNING_ALGORITHM = "ES256"

_Keys = list[dict[str, Any]]


class SigningKeysUnavailable(ValueError):
    """The signing-key file can't be used and no keys are in memory. The message is for operators; it names the file."""


@dataclasses.dataclass(frozen=True)
class _Loaded:
    version: tuple[int, ...]
    keys: _Keys
    signing: KeySet
    verifying: KeySet


class SigningKeys:
    """The service's keys: the first of the file signs, all of them verify.

    Every use checks whether the file has changed, so that a rotation or a removal takes effect in every process on its
    next request. While the file is missing, empty or half-written, the keys in memory stay in force. Every property
    and method that needs keys raises SigningKeysUnavailable when there are none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._loaded: _Loaded | None = None
        self._fault: str | None = None

    @property
    def version(self) -> tuple[int, ...]:
        """A value that changes with the keys."""
        return self._load().version

    @property
    def signing(self) -> KeySet:
        """A set of exactly the signing key, private, so that a signed token carries its `kid`."""
        return self._load().signing

    @property
    def verifying(self) -> KeySet:
        """All public keys."""
        return self._load().verifying

    @property
    def fault(self) -> str | None:
        """Why the file can't be used now, whether or not keys are in memory; None when it can."""
        with contextlib.suppress(SigningKeysUnavailable):
            self._load()
        return self._fault

    def preload(self) -> None:
        """Read the file, if it can be used, so that the keys are in memory before it changes."""
        with contextlib.suppress(SigningKeysUnavailable):
            self._load()

    def ensure(self) -> None:
        """Make the file with one key, mode 0600, unless it exists. Raises SigningKeysUnavailable for a garbage file."""
        if not self.path.exists():
            self._change(lambda keys: keys if keys else [_new_key()])
        self._load()

    def add(self) -> str:
        """Publish a new key that verifies but does not sign, unless it is the only one. Returns its kid."""
        return str(self._change(lambda keys: [*keys, _new_key()])[-1]["kid"])

    def promote(self, kid: str) -> None:
        """Let a key sign from now on; the others go on verifying. Raises KeyError when there is no such key."""

        def promoted(keys: _Keys) -> _Keys:
            return [_find(keys, kid), *(key for key in keys if key["kid"] != kid)]

        self._change(promoted)

    def rotate(self) -> str:
        """Make a new signing key; the others go on verifying. Returns its kid."""
        return str(self._change(lambda keys: [_new_key(), *keys])[0]["kid"])

    def remove(self, kid: str) -> None:
        """Remove a key, so that all tokens that it signed are refused.

        Raises KeyError when there is no such key, ValueError when it is the signing key.
        """

        def without(keys: _Keys) -> _Keys:
            if _find(keys, kid) is keys[0]:
                raise ValueError(kid)
            return [key for key in keys if key["kid"] != kid]

        self._change(without)

    def listed(self) -> _Keys:
        """Return kid, alg and iat (epoch seconds) of each key, the signing key first."""
        return [{name: key.get(name) for name in ("kid", "alg", "iat")} for key in self._load().keys]

    def _load(self) -> _Loaded:
        loaded = self._loaded
        try:
            stat = os.stat(self.path)
            version = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
            if loaded is None or loaded.version != version:
                loaded = self._loaded = _parse(self.path.read_bytes(), version)
        except (OSError, ValueError, TypeError, KeyError, JoseError) as error:
            fault = error.strerror if isinstance(error, OSError) else "it is empty, half-written or no JWKS of ours"
            if self._fault is None and loaded is not None:
                log.error("the signing-key file can't be used: the keys in memory stay in force")
            self._fault = fault or "it can't be read"
            if loaded is None:
                raise SigningKeysUnavailable(f"the signing-key file {self.path}: {self._fault}") from None
            return loaded
        self._fault = None
        return loaded

    def _change(self, change: Callable[[_Keys], _Keys]) -> _Keys:
        make_folder(self.path.parent)
        with self._locked():
            keys = self._load().keys if self.path.exists() else []
            if keys and self._fault:
                raise SigningKeysUnavailable(f"the signing-key file {self.path}: {self._fault}")
            keys = change(keys)
            fresh = self.path.with_name(self.path.name + ".new")
            fresh.unlink(missing_ok=True)
            with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                json.dump({"keys": keys}, file, indent=1)
                if os.geteuid() == 0:
                    # Root may rotate the keys of a service that runs as another user.
                    owner = os.stat(self.path if self.path.exists() else self.path.parent)
                    os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
            # A lost key would invalidate the tokens that it signed.
            sync(fresh)
            fresh.replace(self.path)
            sync(self.path.parent)
            return keys

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        # The folder itself is locked, since a lock file would need an owner.
        lock = os.open(self.path.parent, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


def prepare(settings: Settings) -> bool:
    """Have usable signing keys before the service starts; whether one was made, in the data directory.

    Raises SigningKeysUnavailable as `check` does: a missing file that a setting names may be a typing error.
    """
    is_new = not settings.signing_keys and not settings.signing_keys_path.exists()
    if is_new:
        SigningKeys(settings.signing_keys_path).ensure()
    check(settings)
    return is_new


def check(settings: Settings) -> None:
    """Raises SigningKeysUnavailable when the file is missing or garbage."""
    path = settings.signing_keys_path
    if not path.exists():
        where = f"WATCHPOST_SIGNING_KEYS names {path}, which" if settings.signing_keys else f"the file {path}"
        raise SigningKeysUnavailable(
            f"{where} does not exist: correct the setting, or make a key with `flask --app wsgi keys add`"
        )
    if SigningKeys(path).fault:
        raise SigningKeysUnavailable(f"{path} holds no signing keys that can be read: put back a copy")


def _find(keys: _Keys, kid: str) -> dict[str, Any]:
    for key in keys:
        if key["kid"] == kid:
            return key
    raise KeyError(kid)


def _parse(content: bytes, version: tuple[int, ...]) -> _Loaded:
    """Read a JWKS of private EC P-256 keys. Raises ValueError, TypeError, KeyError, JoseError."""
    keys: _Keys = json.loads(content)["keys"]
    private = [ECKey.import_key(key) for key in keys]
    if not private or not all(key.is_private and key.curve_name == "P-256" for key in private):
        raise ValueError("no private P-256 keys")
    if not all(isinstance(key["kid"], str) for key in keys):
        raise ValueError("a key without a kid")
    public = [ECKey.import_key(key.as_dict(private=False)) for key in private]
    return _Loaded(version, keys, KeySet(list(private[:1])), KeySet(list(public)))


def _new_key() -> dict[str, Any]:
    key = ECKey.generate_key("P-256")
    members = dict(key.as_dict(private=True))
    return {**members, "kid": key.thumbprint(), "alg": SIGNING_ALGORITHM, "use": "sig", "iat": int(time.time())}
