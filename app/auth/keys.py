"""Keys: the service's own, in a JWKS file (RFC 7517), and the public keys of devices."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)
from joserfc.jwk import ECKey, Key, KeySet, OKPKey, RSAKey

from app.files import make_folder, sync

# One algorithm for each key type: what a token says of itself never chooses.
SIGNING_ALGORITHM = "ES256"
MAX_PEM = 2000
_PEM = re.compile(r"\s*-----BEGIN (RSA )?PUBLIC KEY-----[A-Za-z0-9+/=\s]+-----END (RSA )?PUBLIC KEY-----\s*", re.ASCII)

# Encodings of the points of small order on Curve25519's Edwards form, sign bit cleared: for such a "key" anyone can
# make signatures (Chalkias et al., "Taming the many EdDSAs", table 6b).
_SMALL_ORDER = {
    bytes.fromhex(text)
    for text in (
        "00" * 32,
        "01" + "00" * 31,
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "ec" + "ff" * 30 + "7f",
        "ed" + "ff" * 30 + "7f",
        "ee" + "ff" * 30 + "7f",
    )
}


class KeyRefused(ValueError):
    """A public key that is not accepted. The message is for the client and quotes nothing."""


@dataclasses.dataclass(frozen=True)
class DeviceKey:
    """A device's public key.

    pem: SubjectPublicKeyInfo, serialised anew. thumbprint: RFC 7638, SHA-256, base64url. algorithm: the one JWS
    algorithm (RFC 7518, RFC 8037) that it may verify.
    """

    pem: str
    thumbprint: str
    algorithm: str
    jwk: Key


def device_key(text: str) -> DeviceKey:
    """Read a device's public key from PEM: EC P-256, RSA of 2048 to 4096 bits, or Ed25519.

    Raises KeyRefused for everything else, a private key and a certificate included.
    """
    if "PRIVATE" in text:
        raise KeyRefused("Must be a public key. Never send a private key.")
    if len(text) > MAX_PEM or not _PEM.fullmatch(text):
        raise KeyRefused("Must be one public key in PEM.")
    try:
        key = load_pem_public_key(text.encode())
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise KeyRefused("Must be one public key in PEM.") from None
    jwk_class: type[ECKey] | type[RSAKey] | type[OKPKey]
    if isinstance(key, ec.EllipticCurvePublicKey):
        if not isinstance(key.curve, ec.SECP256R1):
            raise KeyRefused("An EC key must be on curve P-256.")
        algorithm, jwk_class = "ES256", ECKey
    elif isinstance(key, rsa.RSAPublicKey):
        numbers = key.public_numbers()
        if not 2048 <= key.key_size <= 4096 or numbers.e < 65537 or numbers.n % 2 == 0:
            raise KeyRefused("An RSA key must have 2048 to 4096 bits and an exponent of at least 65537.")
        algorithm, jwk_class = "RS256", RSAKey
    elif isinstance(key, ed25519.Ed25519PublicKey):
        raw = key.public_bytes(Encoding.Raw, PublicFormat.Raw)
        if raw[:31] + bytes([raw[31] & 0x7F]) in _SMALL_ORDER:
            raise KeyRefused("The Ed25519 key is weak.")
        algorithm, jwk_class = "EdDSA", OKPKey
    else:
        raise KeyRefused("Must be an EC P-256, RSA or Ed25519 key.")
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    jwk = jwk_class.import_key(pem)
    return DeviceKey(pem, jwk.thumbprint(), algorithm, jwk)


def _dummy_keys() -> dict[str, DeviceKey]:
    """A key of each algorithm whose private half nobody has."""
    public = (
        ec.generate_private_key(ec.SECP256R1()).public_key(),
        ed25519.Ed25519PrivateKey.generate().public_key(),
        # To make a real one takes long, and nothing that it verifies is believed.
        rsa.RSAPublicNumbers(65537, 2**2048 - 1).public_key(),
    )
    pems = (key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode() for key in public)
    return {key.algorithm: key for key in map(device_key, pems)}


DUMMY_KEYS = _dummy_keys()


@dataclasses.dataclass(frozen=True)
class _Loaded:
    version: tuple[int, ...]
    keys: list[dict[str, Any]]
    signing: KeySet
    verifying: KeySet


class SigningKeys:
    """The service's keys: the first of the file signs, all of them verify.

    The file is looked at on every use and read again when it changed, so that a rotation or a removal takes effect in
    every process on its next request.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._loaded: _Loaded | None = None

    @property
    def version(self) -> tuple[int, ...]:
        return self._load().version

    @property
    def signing(self) -> KeySet:
        """A set of exactly the signing key, private, so that what is signed carries its `kid`."""
        return self._load().signing

    @property
    def verifying(self) -> KeySet:
        """All public keys."""
        return self._load().verifying

    def ensure(self) -> None:
        """Make the file, mode 0600, if there is none."""
        if not self.path.exists():
            self._change(lambda keys: keys if keys else [_new_key()])

    def rotate(self) -> str:
        """Make a new signing key; the others go on verifying. Returns its kid."""
        return str(self._change(lambda keys: [_new_key(), *keys])[0]["kid"])

    def remove(self, kid: str) -> None:
        """Remove a key: whatever it signed is refused from now on.

        Raises KeyError when there is no such key, ValueError when it is the signing key.
        """

        def without(keys: list[dict[str, Any]]) -> list[dict[str, Any]]:
            if kid not in [key["kid"] for key in keys]:
                raise KeyError(kid)
            if keys[0]["kid"] == kid:
                raise ValueError(kid)
            return [key for key in keys if key["kid"] != kid]

        self._change(without)

    def listed(self) -> list[dict[str, Any]]:
        """kid, alg and iat (epoch seconds) of each key, the signing key first."""
        return [{name: key.get(name) for name in ("kid", "alg", "iat")} for key in self._load().keys]

    def _load(self) -> _Loaded:
        stat = os.stat(self.path)
        version = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
        loaded = self._loaded
        if loaded is None or loaded.version != version:
            keys = json.loads(self.path.read_bytes())["keys"]
            private = [ECKey.import_key(key) for key in keys]
            public = [ECKey.import_key(key.as_dict(private=False)) for key in private]
            loaded = self._loaded = _Loaded(version, keys, KeySet(list(private[:1])), KeySet(list(public)))
        return loaded

    def _change(self, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> list[dict[str, Any]]:
        make_folder(self.path.parent)
        with self._alone():
            keys: list[dict[str, Any]] = []
            with contextlib.suppress(FileNotFoundError):
                keys = json.loads(self.path.read_bytes())["keys"]
            keys = change(keys)
            fresh = self.path.with_name(self.path.name + ".new")
            fresh.unlink(missing_ok=True)
            with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                json.dump({"keys": keys}, file, indent=1)
                if os.geteuid() == 0:
                    # Root rotates the keys of a service that runs as somebody else.
                    owner = os.stat(self.path if self.path.exists() else self.path.parent)
                    os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
            # Tokens that were given out are worth nothing without the key.
            sync(fresh)
            fresh.replace(self.path)
            sync(self.path.parent)
            return keys

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        # The folder itself is the lock: a file would have to be somebody's.
        lock = os.open(self.path.parent, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


def _new_key() -> dict[str, Any]:
    key = ECKey.generate_key("P-256")
    members = dict(key.as_dict(private=True))
    return {**members, "kid": key.thumbprint(), "alg": SIGNING_ALGORITHM, "use": "sig", "iat": int(time.time())}
