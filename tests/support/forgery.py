"""Good tokens turned into bad ones: bit by bit, type by type, and by what is known of each kind of signature."""

from __future__ import annotations

import hashlib
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterator
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA1, SHA256, SHA384, SHA512
from joserfc.jwk import ECKey, OKPKey, RSAKey

Key = ECKey | RSAKey | OKPKey
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
# Of each JSON type some.
VALUES: dict[str, list[Any]] = {
    "null": [None],
    "boolean": [True, False],
    "number": [0, -1, 1.5, 2**63 - 1],
    "string": ["", "x", "0", "9999999999", "\x00"],
    "array": [[], [None], [0], [["x"]], [{}]],
    "object": [{}, {"x": "x"}, {"": None}],
}
# The type that a member must have; `aud` may be a list of strings too, of which VALUES has none.
TYPES = {
    **dict.fromkeys(("alg", "typ", "kid", "iss", "sub", "aud", "jti", "scope", "client_id"), "string"),
    **dict.fromkeys(("exp", "nbf", "iat"), "number"),
    "cnf": "object",
}

# The order of the group of P-256 (SEC 2), and of that of Ed25519 (RFC 8032, section 5.1).
N = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
L = 2**252 + 27742317777372353535851937790883648493
# Points of small order on Ed25519's curve, with other spellings of them.
SMALL_POINTS = [
    bytes.fromhex(text)
    for text in (
        "01" + "00" * 31,
        "01" + "00" * 30 + "80",
        "ec" + "ff" * 30 + "7f",
        "00" * 32,
        "00" * 31 + "80",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "ed" + "ff" * 30 + "7f",
        "ee" + "ff" * 30 + "7f",
    )
]


def part(value: Any) -> str:
    """One part of a compact token: bytes as they are, anything else as JSON."""
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def unpart(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


def sign(key: Key, text: bytes) -> bytes:
    """A good signature, as JWS has it (RFC 7518, RFC 8037)."""
    private = key.get_op_key("sign")
    if isinstance(key, ECKey):
        r, s = decode_dss_signature(private.sign(text, ec.ECDSA(SHA256())))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")
    if isinstance(key, RSAKey):
        return bytes(private.sign(text, padding.PKCS1v15(), SHA256()))
    return bytes(private.sign(text))


def signed(key: Key, header: Any, claims: Any) -> str:
    """A token signed by hand, since a library would refuse to make the bad ones."""
    text = f"{part(header)}.{part(claims)}"
    return f"{text}.{part(sign(key, text.encode()))}"


def flipped(token: str) -> Iterator[tuple[str, str]]:
    """Each bit of header, claims and signature turned over; those of the last characters that carry nothing too."""
    parts = token.split(".")
    for place, text in zip(("header", "claims", "signature"), range(3), strict=True):
        for at, character in enumerate(parts[text]):
            for bit in range(6):
                other = ALPHABET[ALPHABET.index(character) ^ (1 << bit)]
                changed = parts[text][:at] + other + parts[text][at + 1 :]
                yield (
                    f"bit {bit} of character {at} of the {place}",
                    ".".join([*parts[:text], changed, *parts[text + 1 :]]),
                )


def cut(token: str) -> Iterator[tuple[str, str]]:
    """The beginnings and the ends of a token."""
    for at in range(len(token)):
        yield f"the first {at} characters", token[:at]
        if at:
            yield f"without the first {at} characters", token[at:]


def mistyped(key: Key, header: dict[str, Any], claims: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Well signed, but a member of header or claims is of another JSON type."""
    for place, members in (("header", header), ("claims", claims)):
        for name in TYPES:
            of_header = name in ("alg", "typ", "kid")
            if of_header != (place == "header") or not (of_header or name in members or name == "nbf"):
                continue
            for type_, values in VALUES.items():
                for value in values if type_ != TYPES[name] else []:
                    changed = {**members, name: value}
                    token = signed(key, changed, claims) if place == "header" else signed(key, header, changed)
                    yield f"{name} as {type_} {json.dumps(value)}", token


def respelled(token: str) -> dict[str, str]:
    """The same bytes, written in another way than RFC 7515 has it."""
    header, claims, signature = token.split(".")
    standard = {place: at for at, place in enumerate(("header", "claims", "signature"))}
    found = {
        f"padding behind the {place}": ".".join(
            text + "=" * (-len(text) % 4 or 1) if index == at else text
            for index, text in enumerate((header, claims, signature))
        )
        for place, at in standard.items()
    }
    found |= {
        "base64 instead of base64url": token.replace("-", "+").replace("_", "/"),
        "a space in front": " " + token,
        "a line end behind": token + "\n",
        "a space within the claims": f"{header}.{claims[:8]} {claims[8:]}.{signature}",
        "a line end within the signature": f"{header}.{claims}.{signature[:8]}\n{signature[8:]}",
        "a NUL behind": token + "\x00",
        "a dot behind": token + ".",
        "a dot in front": "." + token,
        "a comma behind": token + ",",
        "twice": f"{token},{token}",
        "percent-encoded": token.replace(".", "%2E"),
        "full-width": token.replace(".", "\uff0e"),
        "four more bits": f"{header}.{claims}.{signature}A",
    }
    if unused := {2: 15, 3: 3}.get(len(signature) % 4):
        last = ALPHABET.index(signature[-1])
        found |= {
            f"bits {more:b} that carry nothing": f"{header}.{claims}.{signature[:-1]}{ALPHABET[last | more]}"
            for more in range(1, unused + 1)
        }
    # Base64 only differs where there is something to differ in.
    return {name: text for name, text in found.items() if text != token}


def forged(key: Key, text: bytes) -> dict[str, bytes]:
    """Signatures of a text that must not be taken, by what goes wrong in libraries (Wycheproof's cases, by hand)."""
    if isinstance(key, ECKey):
        return _ecdsa(key, text)
    if isinstance(key, RSAKey):
        return _rsa(key, text)
    return _eddsa(key, text)


def _ecdsa(key: ECKey, text: bytes) -> dict[str, bytes]:
    good = sign(key, text)
    r, s = int.from_bytes(good[:32], "big"), int.from_bytes(good[32:], "big")
    private = key.get_op_key("sign")

    def raw(r: int, s: int, size: int = 32) -> bytes:
        return (r % 256**size).to_bytes(size, "big") + (s % 256**size).to_bytes(size, "big")

    edges = {"0": 0, "1": 1, "n - 1": N - 1, "n": N, "n + 1": N + 1, "2^256 - 1": 2**256 - 1, "p": 2**256 - 2**224}
    found = {f"r = {name}": raw(value, s) for name, value in edges.items()}
    found |= {f"s = {name}": raw(r, value) for name, value in edges.items()}
    found |= {f"r = {one}, s = {two}": raw(edges[one], edges[two]) for one in edges for two in edges}
    other_r, other_s = decode_dss_signature(private.sign(text + b".", ec.ECDSA(SHA256())))
    wrong_hash = decode_dss_signature(private.sign(hashlib.sha512(text).digest()[:32], ec.ECDSA(Prehashed(SHA256()))))
    return found | {
        "r below 0": raw(-r, s),
        "s below 0": raw(r, -s),
        "both below 0": raw(-r, -s),
        "r mirrored": raw(N - r, s),
        "r and s exchanged": raw(s, r),
        "r of another": raw(other_r, s),
        "s of another": raw(r, other_s),
        "of another text": raw(other_r, other_s),
        "of another hash": raw(*wrong_hash),
        "r plus n, in 33 bytes": raw(r + N, s, 33),
        "s plus n, in 33 bytes": raw(r, s + N, 33),
        "in 33 bytes each": raw(r, s, 33),
        "in 48 bytes each": raw(r, s, 48),
        "in 66 bytes each": raw(r, s, 66),
        "in 31 bytes each": raw(r, s, 31),
        "a byte short": good[:-1],
        "a byte short in front": good[1:],
        "a byte behind": good + b"\x00",
        "a byte in front": b"\x00" + good,
        "twice": good * 2,
        "r alone": good[:32],
        "of one byte": b"\x00",
        "of zeros": bytes(64),
        "of ones": b"\xff" * 64,
        "DER": encode_dss_signature(r, s),
        "DER of zeros": encode_dss_signature(0, 0),
        "little-endian": good[:32][::-1] + good[32:][::-1],
        "as text": good.hex().encode(),
    }


def _eddsa(key: OKPKey, text: bytes) -> dict[str, bytes]:
    good = sign(key, text)
    r, s = good[:32], int.from_bytes(good[32:], "little")

    def raw(r: bytes, s: int) -> bytes:
        return r + (s % 2**256).to_bytes(32, "little")

    found = {f"s plus {times} L": raw(r, s + times * L) for times in range(1, 16) if s + times * L < 2**256}
    edges = {"0": 0, "1": 1, "L - 1": L - 1, "L": L, "L + 1": L + 1, "2^255": 2**255, "2^256 - 1": 2**256 - 1}
    found |= {f"s = {name}": raw(r, value) for name, value in edges.items()}
    found |= {
        f"R the small point {point.hex()[:4]}, s = {name}": raw(point, value)
        for point in SMALL_POINTS
        for name, value in {**edges, "as it was": s}.items()
    }
    return found | {
        "s below 0": raw(r, -s),
        "s mirrored": raw(r, L - s),
        "R with its sign turned": raw(r[:31] + bytes([r[31] ^ 0x80]), s),
        "R of another": raw(sign(key, text + b".")[:32], s),
        "of another text": sign(key, text + b"."),
        "of the hash of it": sign(key, hashlib.sha512(text).digest()),
        "a byte short": good[:-1],
        "a byte behind": good + b"\x00",
        "a byte in front": b"\x00" + good,
        "R alone": r,
        "of one byte": b"\x00",
        "of zeros": bytes(64),
        "of ones": b"\xff" * 64,
        "twice": good * 2,
        "as long as of Ed448": good + bytes(50),
        "s big-endian": r + good[32:][::-1],
        "as text": good.hex().encode(),
    }


def _rsa(key: RSAKey, text: bytes) -> dict[str, bytes]:
    good = sign(key, text)
    private = key.get_op_key("sign")
    numbers = private.private_numbers()
    n, d = numbers.public_numbers.n, numbers.d
    size = len(good)
    # RFC 8017, section 9.2.
    oid = bytes.fromhex("3031300d060960864801650304020105000420")
    digest = hashlib.sha256(text).digest()

    def raw(block: bytes) -> bytes:
        return pow(int.from_bytes(block, "big") % n, d, n).to_bytes(size, "big")

    def block(info: bytes, start: bytes = b"\x00\x01", fill: bytes = b"\xff", end: bytes = b"\x00") -> bytes:
        return start + fill * (size - len(start) - len(end) - len(info)) + end + info

    assert raw(block(oid + digest)) == good
    as_sha512 = bytes.fromhex("3051300d060960864801650304020305000440") + hashlib.sha512(text).digest()
    as_sha1 = bytes.fromhex("3021300906052b0e03021a05000414") + hashlib.sha1(text).digest()
    without_null = bytes.fromhex("302f300b0609608648016503040201") + b"\x04\x20" + digest
    long_length = bytes.fromhex("308131300d060960864801650304020105000420")[:3] + oid[2:] + digest
    parameters = bytes.fromhex("3033300f06096086480165030402010502aaaa0420") + digest
    short = b"\x00\x01" + b"\xff" * 8 + b"\x00" + oid + digest
    value = int.from_bytes(good, "big")
    return {
        "garbage behind the hash": raw(short + b"\xaa" * (size - len(short))),
        "zeros behind the hash": raw(short + bytes(size - len(short))),
        "no padding but zeros": raw(bytes(size - len(oid + digest)) + oid + digest),
        "padding of a byte": raw(b"\x00\x01\xff\x00" + oid + digest + bytes(size - 4 - len(oid + digest))),
        "padding of another byte": raw(block(oid + digest, fill=b"\xfe")),
        "padding with a flaw": raw(block(oid + digest)[:20] + b"\x7f" + block(oid + digest)[21:]),
        "no end of the padding": raw(block(oid + digest, end=b"")),
        "another end of the padding": raw(block(oid + digest, end=b"\xff")),
        "block type 0": raw(block(oid + digest, start=b"\x00\x00", fill=b"\x00")),
        "block type 2": raw(block(oid + digest, start=b"\x00\x02", fill=b"\xaa")),
        "another first byte": raw(block(oid + digest, start=b"\x01\x01")),
        "the hash alone": raw(block(digest)),
        "the hash alone, unpadded": raw(digest.rjust(size, b"\x00")),
        "the name of another hash": raw(block(bytes.fromhex("3031300d060960864801650304020305000420") + digest)),
        "SHA-1": raw(block(as_sha1)),
        "SHA-512": raw(block(as_sha512)),
        "without NULL": raw(block(without_null)),
        "another parameter": raw(block(parameters)),
        "a length in another spelling": raw(block(long_length)),
        "a hash that is cut": raw(block(oid + digest[:-1])),
        "a hash with a byte more": raw(block(oid + digest + b"\x00")),
        "PSS": bytes(private.sign(text, padding.PSS(padding.MGF1(SHA256()), 32), SHA256())),
        "PSS without salt": bytes(private.sign(text, padding.PSS(padding.MGF1(SHA256()), 0), SHA256())),
        "RS384": bytes(private.sign(text, padding.PKCS1v15(), SHA384())),
        "RS512": bytes(private.sign(text, padding.PKCS1v15(), SHA512())),
        "PKCS #1 with SHA-1": bytes(private.sign(text, padding.PKCS1v15(), SHA1())),
        "of another text": sign(key, text + b"."),
        "plus n": (value + n).to_bytes(size + 1, "big"),
        "mirrored": (n - value).to_bytes(size, "big"),
        "0": bytes(size),
        "1": (1).to_bytes(size, "big"),
        "n - 1": (n - 1).to_bytes(size, "big"),
        "n": n.to_bytes(size, "big"),
        "n + 1": (n + 1).to_bytes(size, "big"),
        "all ones": b"\xff" * size,
        "a byte short": good[:-1],
        "a byte in front": b"\x00" + good,
        "a byte behind": good + b"\x00",
        "little-endian": good[::-1],
        "of one byte": b"\x00",
        "as text": good.hex().encode(),
    }
