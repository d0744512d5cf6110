"""Public keys of devices: which are accepted, and the one algorithm of each type."""

from __future__ import annotations

import dataclasses
import re

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)
from joserfc.jwk import ECKey, Key, OKPKey, RSAKey

MAX_PEM = 2000
_PEM = re.compile(r"\s*-----BEGIN (RSA )?PUBLIC KEY-----[A-Za-z0-9+/=\s]+-----END (RSA )?PUBLIC KEY-----\s*", re.ASCII)

# Encodings of the points of small order on Curve25519's Edwards form, with the sign bit cleared. Anyone can make
# signatures for such a key (Chalkias et al., "Taming the many EdDSAs", table 6b).
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
    """The public key is not accepted. The message is for the client and quotes nothing of the key."""


@dataclasses.dataclass(frozen=True)
class DeviceKey:
    """A device's public key.

    pem: SubjectPublicKeyInfo, serialised again by us. thumbprint: RFC 7638, SHA-256, base64url. algorithm: the one JWS
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
    """Return a key of each algorithm whose private key does not exist or is discarded."""
    public = (
        ec.generate_private_key(ec.SECP256R1()).public_key(),
        ed25519.Ed25519PrivateKey.generate().public_key(),
        # A real RSA key takes long to make, and no signature that a dummy key verifies is accepted.
        rsa.RSAPublicNumbers(65537, 2**2048 - 1).public_key(),
    )
    pems = (key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode() for key in public)
    return {key.algorithm: key for key in map(device_key, pems)}


DUMMY_KEYS = _dummy_keys()
