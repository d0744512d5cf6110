"""POST /api/devices/register and POST /api/devices/heartbeat."""

from __future__ import annotations

import dataclasses
import json
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa, x25519
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import NameOID
from joserfc.jwk import ECKey, OKPKey, RSAKey

from app.api.scopes import REGISTER as REGISTER_SCOPE
from tests.support.agent import Agent
from tests.support.application import create_app
from tests.support.checks import HOSTILE_IDS, HOSTILE_TEXT, STORED_TEXT, at_once, is_refused, statuses

REGISTER = "/api/devices/register"
HEARTBEAT = "/api/devices/heartbeat"
# Every column but the times of the metadata.
DEVICES = """SELECT device_id, public_key_pem, key_thumbprint, hostname, macs, ips, os, browsers, registered_at,
    last_heartbeat, revoked_at, archived_at, erased_at FROM devices"""
DEVICE = f"{DEVICES} WHERE device_id = %s"
METADATA = {
    "macs": ["00:1a:2b:3c:4d:5e", "00-1A-2B-3C-4D-5F"],
    "ips": ["192.0.2.7", "2001:db8::7"],
    "os": {"name": "macOS", "version": "14.5"},
    "browsers": ["firefox", {"name": "chrome", "version": "126.0"}],
}
CHANGED = {
    "hostname": "renamed",
    "macs": ["02:00:00:00:00:01"],
    "ips": ["198.51.100.1"],
    "os": "Windows 11",
    "browsers": ["edge"],
}
WRONG_METADATA = [
    ("hostname", 5),
    ("hostname", True),
    ("hostname", ["host"]),
    ("hostname", {"name": "host"}),
    ("hostname", "x" * 262_145),
    ("macs", "00:1a:2b:3c:4d:5e"),
    ("macs", {"en0": "00:1a:2b:3c:4d:5e"}),
    ("ips", "192.0.2.7"),
    ("ips", {"en0": "192.0.2.7"}),
    ("os", 14),
    ("os", 14.5),
    ("os", True),
    ("os", ["macOS"]),
    ("browsers", "firefox"),
    ("browsers", {"name": "firefox"}),
    ("browsers", [5]),
    ("browsers", [None]),
    ("browsers", [["firefox"]]),
]


def pem(public_key: Any) -> str:
    return public_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def private_pem(key: Any, form: PrivateFormat = PrivateFormat.PKCS8, secret: bytes | None = None) -> str:
    encryption = BestAvailableEncryption(secret) if secret else NoEncryption()
    return key.private_bytes(Encoding.PEM, form, encryption).decode()


def new_ec(curve: ec.EllipticCurve | None = None) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(curve or ec.SECP256R1())


def certificate() -> str:
    key = new_ec()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "laptop")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
    return builder.sign(key, SHA256()).public_bytes(Encoding.PEM).decode()


def ed25519_point(raw: str) -> str:
    return pem(ed25519.Ed25519PublicKey.from_public_bytes(bytes.fromhex(raw)))


def rsa_modulus(bits: int) -> str:
    return pem(rsa.RSAPublicNumbers(65537, 2**bits - 1).public_key())


REFUSED_KEYS: dict[str, Callable[[], str]] = {
    "private EC key": lambda: private_pem(new_ec()),
    "private EC key of OpenSSL": lambda: private_pem(new_ec(), PrivateFormat.TraditionalOpenSSL),
    "encrypted private key": lambda: private_pem(new_ec(), secret=b"secret"),
    "private Ed25519 key": lambda: private_pem(ed25519.Ed25519PrivateKey.generate()),
    "public and private key": lambda: pem(new_ec().public_key()) + private_pem(new_ec()),
    "RSA of 1024 bits": lambda: pem(rsa.generate_private_key(65537, 1024).public_key()),
    "RSA of 2047 bits": lambda: rsa_modulus(2047),
    "RSA of 4097 bits": lambda: rsa_modulus(4097),
    "RSA with exponent 3": lambda: pem(rsa.generate_private_key(3, 2048).public_key()),
    "P-384": lambda: pem(new_ec(ec.SECP384R1()).public_key()),
    "P-521": lambda: pem(new_ec(ec.SECP521R1()).public_key()),
    "secp256k1": lambda: pem(new_ec(ec.SECP256K1()).public_key()),
    "X25519": lambda: pem(x25519.X25519PrivateKey.generate().public_key()),
    "DSA": lambda: pem(dsa.DSAPublicNumbers(5, dsa.DSAParameterNumbers(2**2048 - 1, 2**256 - 1, 2)).public_key()),
    "Ed25519 identity": lambda: ed25519_point("01" + "00" * 31),
    "Ed25519 zero": lambda: ed25519_point("00" * 32),
    "Ed25519 point of order 2": lambda: ed25519_point("ec" + "ff" * 30 + "7f"),
    "Ed25519 point of order 8": lambda: ed25519_point(
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"
    ),
    "Ed25519 point of order 8, negative": lambda: ed25519_point(
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85"
    ),
    "certificate": certificate,
    "two keys": lambda: pem(new_ec().public_key()) + pem(new_ec().public_key()),
    "shared secret": lambda: "correct-horse-battery-staple-correct-horse",
    "shared secret in PEM": lambda: "-----BEGIN PUBLIC KEY-----\nc2hhcmVkLXNlY3JldA==\n-----END PUBLIC KEY-----\n",
    "JWK": lambda: json.dumps(ECKey.generate_key("P-256").as_dict(private=False)),
    "JWK of a secret": lambda: '{"kty": "oct", "k": "c2hhcmVkLXNlY3JldA"}',
    "half a key": lambda: pem(new_ec().public_key())[:100],
    "garbage": lambda: "\x00\x01\ufffd\ud800 not a key",
    "nothing": lambda: "",
    "very much": lambda: "-----BEGIN PUBLIC KEY-----\n" + "A" * 100_000,
}


@pytest.fixture
def enrol(client: Any, bearer: Any, enrollment: Any) -> Callable[..., Any]:
    """POST a registration: enrol(body), with an enrolment for many unless another token is given."""
    many = enrollment()
    return lambda body, token=many: client.post(REGISTER, json=body, headers=bearer(token))


@pytest.fixture
def beat(client: Any, device: Agent, headers: dict[str, str]) -> Callable[..., Any]:
    """POST a heartbeat of `device`: beat(hostname="new")."""
    return lambda **more: client.post(HEARTBEAT, json={"device_id": device.device_id, **more}, headers=headers)


def is_invalid(answer: Any, field: str) -> None:
    is_refused(answer, 400, "invalid-body")
    assert list(answer.json["errors"]["json"]) == [field]


def uses(rows: Any) -> list[int]:
    return [row["uses"] for row in rows("SELECT uses FROM enrollments ORDER BY created_at")]


def test_a_new_device_is_stored_with_every_column(enrol, rows, now_ms):
    agent = Agent()
    answer = enrol(agent.proven(hostname="laptop", registered_at=now_ms, **METADATA))
    assert answer.status_code == 201
    registered_at = datetime.fromtimestamp(now_ms // 1000, UTC) + timedelta(milliseconds=now_ms % 1000)
    assert rows(DEVICES) == [
        {
            "device_id": agent.device_id,
            "public_key_pem": agent.public_key_pem,
            "key_thumbprint": agent.key.thumbprint(),
            "hostname": "laptop",
            **METADATA,
            "registered_at": registered_at,
            "last_heartbeat": None,
            "revoked_at": None,
            "archived_at": None,
            "erased_at": None,
        }
    ]
    assert answer.json["device_id"] == agent.device_id
    assert answer.json["key_thumbprint"] == agent.key.thumbprint()
    assert answer.json["registered_at"].endswith("Z")
    assert datetime.fromisoformat(answer.json["registered_at"]) == registered_at


def test_optional_fields_may_be_left_out(enrol, rows):
    agent = Agent()
    before = rows("SELECT now()")[0]["now"]
    assert enrol(agent.proven()).status_code == 201
    row = rows(DEVICE, agent.device_id)[0]
    assert [row[name] for name in METADATA] == [None] * 4
    assert before <= row["registered_at"] <= rows("SELECT now()")[0]["now"]


@pytest.mark.parametrize("field", [*METADATA, "registered_at"])
def test_an_optional_field_of_null_is_absent(enrol, rows, field):
    agent = Agent()
    assert enrol(agent.proven(**METADATA | {field: None})).status_code == 201
    row = rows(DEVICE, agent.device_id)[0]
    assert {name: row[name] for name in METADATA} == METADATA | ({field: None} if field in METADATA else {})
    assert row["registered_at"] is not None


def test_unknown_fields_are_ignored(enrol, rows):
    agent = Agent()
    more = {"color": "red", "revoked_at": "2020-01-01T00:00:00Z", "key_thumbprint": "x", "last_heartbeat": None}
    assert enrol(agent.proven(**more)).status_code == 201
    row = rows(DEVICE, agent.device_id)[0]
    assert (row["revoked_at"], row["key_thumbprint"]) == (None, agent.key.thumbprint())


def test_the_same_device_and_key_again_updates_the_metadata(enrol, rows):
    agent = Agent()
    first = enrol(agent.proven(**METADATA))
    again = enrol(agent.proven(**CHANGED))
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json == first.json
    stored = rows(DEVICES)
    assert len(stored) == 1
    assert {name: stored[0][name] for name in CHANGED} == CHANGED


def test_without_a_proof_the_metadata_of_a_known_device_stays_as_it_is(enrol, rows):
    device = Agent()
    assert enrol(device.registration(hostname="first", os="old")).status_code == 201
    answer = enrol(device.registration(hostname="second", os="new", macs=["02:00:00:00:00:01"]))
    assert answer.status_code == 200
    stored = rows("SELECT hostname, os, macs FROM devices")
    assert stored == [{"hostname": "first", "os": "old", "macs": None}]
    assert enrol(device.proven(hostname="second")).status_code == 200
    assert rows("SELECT hostname, os FROM devices") == [{"hostname": "second", "os": "old"}]


@pytest.mark.parametrize(
    "claims",
    [
        {"aud": "http://watchpost.test"},
        {"aud": "http://watchpost.test/api/auth/token"},
        {"aud": ["http://watchpost.test/api/devices/register", "http://other.test"]},
        {"iss": "somebody-else"},
        {"sub": "somebody-else"},
        {"exp": int(time.time()) + 3600},
        {"exp": int(time.time()) - 3600},
        {"exp": None},
        {"jti": None},
    ],
    ids=["issuer", "token endpoint", "two", "iss", "sub", "too long", "expired", "no exp", "no jti"],
)
def test_a_proof_that_is_not_for_this_registration_is_refused(enrol, rows, claims):
    device = Agent()
    proof = device.assertion("http://watchpost.test/api/devices/register", **claims)
    answer = enrol(device.registration(proof=proof))
    assert answer.status_code == 400
    assert list(answer.json["errors"]["json"]) == ["proof"]
    assert rows("SELECT FROM devices") == []


@pytest.mark.parametrize(
    "kind", [None, RSAKey.generate_key(2048), OKPKey.generate_key("Ed25519")], ids=["EC", "RSA", "Ed25519"]
)
def test_a_proof_by_another_key_is_refused_and_by_its_own_is_not(enrol, rows, kind):
    device = Agent(key=kind)
    other = Agent(device.device_id)
    proof = other.assertion("http://watchpost.test/api/devices/register")
    for text in (proof, proof[:-4] + "AAAA", "not a token", ""):
        assert enrol(device.registration(proof=text)).status_code == 400
    assert rows("SELECT FROM devices") == []
    assert enrol(device.proven()).status_code == 201


def test_registration_without_a_proof_can_be_refused(settings, enrollment, bearer, rows):
    app = create_app(dataclasses.replace(settings, require_proof=True))
    client, headers, device = app.test_client(), bearer(enrollment()), Agent()
    answers = [
        client.post("/api/devices/register", json=body, headers=headers)
        for body in (device.registration(), device.registration(proof=None), device.proven())
    ]
    app.extensions["db"].close()
    assert [answer.status_code for answer in answers] == [400, 400, 201]
    assert list(answers[0].json["errors"]["json"]) == ["proof"]


def test_a_repeat_spends_no_use_of_the_enrolment(enrol, rows):
    agent = Agent()
    for _ in range(3):
        enrol(agent.proven())
    assert uses(rows) == [1]


def test_a_repeat_keeps_what_it_does_not_give(enrol, rows):
    agent = Agent()
    enrol(agent.proven(hostname="old", registered_at=1_600_000_000_000, **METADATA))
    before = rows(DEVICE, agent.device_id)
    assert enrol(agent.proven(hostname="new", registered_at=1_700_000_000_000)).status_code == 200
    assert rows(DEVICE, agent.device_id) == [before[0] | {"hostname": "new"}]


def test_each_new_device_spends_one_use(enrol, rows):
    for _ in range(3):
        assert enrol(Agent().proven()).status_code == 201
    assert uses(rows) == [3]


# joserfc says so of the name that RFC 8037 gave the algorithm, and that the contract speaks of.
@pytest.mark.filterwarnings("ignore:EdDSA is deprecated")
@pytest.mark.parametrize(
    "new_key",
    [
        lambda: ECKey.generate_key("P-256"),
        lambda: RSAKey.generate_key(2048),
        lambda: RSAKey.generate_key(4096),
        lambda: OKPKey.generate_key("Ed25519"),
    ],
    ids=["P-256", "RSA 2048", "RSA 4096", "Ed25519"],
)
def test_a_strong_key_registers_and_gets_tokens(client, enrol, access, rows, new_key):
    agent = Agent(key=new_key())
    assert enrol(agent.proven()).status_code == 201
    row = rows(DEVICE, agent.device_id)[0]
    assert (row["public_key_pem"], row["key_thumbprint"]) == (agent.public_key_pem, agent.key.thumbprint())
    assert client.post(HEARTBEAT, json={"device_id": agent.device_id}, headers=access(agent)).status_code == 200


@pytest.mark.parametrize(
    "rewrite",
    [
        lambda key: pem(key).replace("\n", "\r\n"),
        lambda key: "\n" + pem(key) + "\n\n",
        lambda key: key.public_bytes(Encoding.PEM, PublicFormat.PKCS1).decode(),
    ],
    ids=["CRLF", "blank lines", "PKCS 1"],
)
def test_the_same_key_written_in_another_way_is_the_same_key(enrol, rows, rewrite):
    agent = Agent(key=RSAKey.generate_key(2048))
    enrol(agent.proven())
    rewritten = rewrite(agent.key.get_op_key("verify"))
    assert rewritten != agent.public_key_pem
    assert enrol(agent.proven(public_key_pem=rewritten)).status_code == 200
    assert rows(DEVICE, agent.device_id)[0]["public_key_pem"] == agent.public_key_pem


@pytest.mark.parametrize("kind", REFUSED_KEYS)
def test_any_other_key_is_refused_and_nothing_is_stored(enrol, rows, kind):
    is_invalid(enrol(Agent().proven(public_key_pem=REFUSED_KEYS[kind]())), "public_key_pem")
    assert rows(DEVICES) == []
    assert uses(rows) == [0]


def test_a_private_key_is_neither_answered_nor_logged(enrol, caplog, capfd):
    sent = private_pem(new_ec())
    answer = enrol(Agent().proven(public_key_pem=sent))
    assert answer.status_code == 400
    logged = capfd.readouterr().err + repr([vars(record) for record in caplog.records])
    assert "watchpost.request" in logged
    for line in sent.splitlines():
        assert line not in answer.text
        assert line not in logged


def test_a_device_with_another_key_is_a_conflict_and_nothing_changes(enrol, rows):
    agent = Agent()
    enrol(agent.proven(**METADATA))
    before = rows(DEVICES)
    is_refused(enrol(Agent(agent.device_id).proven(**CHANGED)), 409, "key-conflict")
    assert rows(DEVICES) == before
    assert uses(rows) == [1]


def test_a_key_of_another_device_is_a_conflict_and_nothing_changes(enrol, rows):
    agent = Agent()
    enrol(agent.proven(**METADATA))
    before = rows(DEVICES)
    is_refused(enrol(Agent(key=agent.key).proven(**CHANGED)), 409, "key-conflict")
    assert rows(DEVICES) == before
    assert uses(rows) == [1]


def test_a_key_of_another_device_is_a_conflict_for_a_registered_device_too(enrol, rows):
    first, second = Agent(), Agent()
    enrol(first.proven())
    enrol(second.proven())
    before = rows(DEVICES)
    is_refused(enrol(Agent(second.device_id, first.key).proven()), 409, "key-conflict")
    assert rows(DEVICES) == before


@pytest.mark.parametrize("clone", ["same device", "same key"])
def test_a_conflict_is_seen_among_the_existing_devices_events(enrol, rows, now_ms, clone):
    agent = Agent()
    enrol(agent.proven())
    intruder = Agent(agent.device_id) if clone == "same device" else Agent(key=agent.key)
    enrol(intruder.proven(hostname="intruder"))
    events = rows("SELECT * FROM compliance_events")
    assert [(event["device_id"], event["event_type"], event["severity"]) for event in events] == [
        (agent.device_id, "registration_conflict", "high")
    ]
    assert events[0]["details"] == {
        "device_id": intruder.device_id,
        "key_thumbprint": intruder.key.thumbprint(),
        "hostname": "intruder",
        "enrollment_id": str(rows("SELECT enrollment_id FROM enrollments")[0]["enrollment_id"]),
    }
    assert now_ms <= events[0]["detected_at"] <= time.time() * 1000


def test_a_registration_conflict_is_one_event_for_each_device_key_and_day(enrol, rows):
    agent, other = Agent(), Agent()
    enrol(agent.proven())
    enrol(other.proven())
    intruders = [Agent(agent.device_id), Agent(agent.device_id)]
    repeated = [*intruders, Agent(other.device_id, intruders[0].key), Agent(key=agent.key), Agent(key=agent.key)]
    for intruder in repeated * 3:
        is_refused(enrol(intruder.proven()), 409, "key-conflict")
    keys = "SELECT device_id, details ->> 'key_thumbprint' AS key FROM compliance_events"
    first, second = (intruder.key.thumbprint() for intruder in intruders)
    expected = [
        (agent.device_id, agent.key.thumbprint()),
        (agent.device_id, first),
        (agent.device_id, second),
        (other.device_id, first),
    ]
    assert sorted((row["device_id"], row["key"]) for row in rows(keys)) == sorted(expected)
    rows("UPDATE conflict_notices SET noticed_on = noticed_on - 1")
    is_refused(enrol(intruders[0].proven()), 409, "key-conflict")
    assert len(rows(keys)) == 5


def test_a_registration_conflict_quotes_at_most_256_characters(enrol, rows):
    agent = Agent()
    enrol(agent.proven())
    is_refused(enrol(Agent(agent.device_id).proven(hostname="h" * 262_144)), 409, "key-conflict")
    details = rows("SELECT details FROM compliance_events")[0]["details"]
    assert details["hostname"] == "h" * 256
    assert max(len(value) for value in details.values()) == 256


def test_a_used_up_enrolment_does_not_tell_which_devices_exist(enrol, enrollment, operate, rows):
    token, agent, revoked = enrollment(max_uses=1), Agent(), Agent()
    enrol(revoked.proven())
    operate("device", "revoke", revoked.device_id)
    assert enrol(agent.proven(), token).status_code == 201
    strangers = [Agent(), Agent(agent.device_id), Agent(key=agent.key), Agent(revoked.device_id)]
    for stranger in strangers:
        is_refused(enrol(stranger.proven(), token), 403, "enrollment-used-up")
    assert enrol(agent.proven(), token).status_code == 200
    assert rows("SELECT * FROM compliance_events") == []


def test_a_good_registration_is_no_event(enrol, rows):
    agent = Agent()
    enrol(agent.proven())
    enrol(agent.proven())
    assert rows("SELECT * FROM compliance_events") == []


def test_a_revoked_device_may_not_register_until_it_is_restored(enrol, operate, rows):
    agent = Agent()
    enrol(agent.proven(hostname="old"))
    operate("device", "revoke", agent.device_id)
    before = rows(DEVICES)
    is_refused(enrol(agent.proven(hostname="new")), 403, "device-revoked")
    is_refused(enrol(Agent(agent.device_id).proven(hostname="new")), 403, "device-revoked")
    assert rows(DEVICES) == before
    operate("device", "restore", agent.device_id)
    assert enrol(agent.proven(hostname="new")).status_code == 200


def test_an_enrolment_that_the_database_calls_expired_is_401(enrol, rows):
    rows("UPDATE enrollments SET expires_at = now() - interval '61 seconds'")
    answer = enrol(Agent().proven())
    is_refused(answer, 401, "invalid-token")
    assert answer.headers["WWW-Authenticate"].startswith('Bearer error="invalid_token"')
    assert rows(DEVICES) == []


def test_an_enrolment_token_that_has_expired_is_401(app, enrol, rows):
    id = str(rows("SELECT enrollment_id FROM enrollments")[0]["enrollment_id"])
    token = app.extensions["auth"].sign(f"enrollment:{id}", id, REGISTER_SCOPE, -61)
    answer = enrol(Agent().proven(), token)
    is_refused(answer, 401, "invalid-token")
    assert answer.headers["WWW-Authenticate"].startswith('Bearer error="invalid_token"')
    assert rows(DEVICES) == []


def test_a_clock_may_be_a_minute_off_when_an_enrolment_expires(app, enrol, rows):
    rows("UPDATE enrollments SET expires_at = now() - interval '20 seconds'")
    id = str(rows("SELECT enrollment_id FROM enrollments")[0]["enrollment_id"])
    token = app.extensions["auth"].sign(f"enrollment:{id}", id, REGISTER_SCOPE, -20)
    assert enrol(Agent().proven(), token).status_code == 201


def test_a_revoked_enrolment_registers_nobody(enrol, operate, rows):
    operate("enrollment", "revoke", str(rows("SELECT enrollment_id FROM enrollments")[0]["enrollment_id"]))
    is_refused(enrol(Agent().proven()), 403, "enrollment-revoked")
    assert rows(DEVICES) == []


def test_an_enrolment_that_is_used_up_registers_only_whom_it_knows(enrol, enrollment, rows):
    token, agent = enrollment(max_uses=1), Agent()
    assert enrol(agent.proven(), token).status_code == 201
    is_refused(enrol(Agent().proven(), token), 403, "enrollment-used-up")
    assert enrol(agent.proven(hostname="new"), token).status_code == 200
    assert [row["hostname"] for row in rows("SELECT hostname FROM devices")] == ["new"]
    assert uses(rows) == [0, 1]


def test_an_enrolment_that_nobody_minted_is_401(app, enrol, rows):
    id = str(uuid.uuid4())
    token = app.extensions["auth"].sign(f"enrollment:{id}", id, REGISTER_SCOPE, 3600)
    answer = enrol(Agent().proven(), token)
    is_refused(answer, 401, "invalid-token")
    assert answer.headers["WWW-Authenticate"].startswith('Bearer error="invalid_token"')
    assert rows(DEVICES) == []


def test_an_access_token_registers_nobody(client, device, headers, rows):
    is_refused(client.post(REGISTER, json=Agent().proven(), headers=headers), 403, "insufficient-scope")
    assert [row["device_id"] for row in rows("SELECT device_id FROM devices")] == [device.device_id]


def test_an_enrolment_token_is_asked_for(client):
    answer = client.post(REGISTER, json=Agent().proven())
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith("Bearer error=")


def test_a_forgotten_key_makes_room_for_one_new_key(enrol, operate, rows):
    agent = Agent()
    enrol(agent.proven())
    operate("device", "forget-key", agent.device_id)
    reinstalled = Agent(agent.device_id)
    assert enrol(reinstalled.proven()).status_code in (200, 201)
    is_refused(enrol(Agent(agent.device_id).proven()), 409, "key-conflict")
    is_refused(enrol(agent.proven()), 409, "key-conflict")
    row = rows(DEVICE, agent.device_id)[0]
    assert (row["public_key_pem"], row["key_thumbprint"]) == (reinstalled.public_key_pem, reinstalled.key.thumbprint())


def test_a_forgotten_key_may_serve_another_device(enrol, operate):
    agent = Agent()
    enrol(agent.proven())
    operate("device", "forget-key", agent.device_id)
    assert enrol(Agent(key=agent.key).proven()).status_code == 201


def test_fifty_devices_at_once_on_the_last_use_are_one_device(app, bearer, enrollment, rows):
    headers = bearer(enrollment(max_uses=1))
    agents = [Agent() for _ in range(50)]
    requests = [partial(app.test_client().post, REGISTER, json=agent.proven(), headers=headers) for agent in agents]
    answers = at_once(requests)
    assert statuses(answers) == [201] + [403] * 49
    winner = next(answer.json["device_id"] for answer in answers if answer.status_code == 201)
    assert [row["device_id"] for row in rows("SELECT device_id FROM devices")] == [winner]
    assert uses(rows) == [1]


def test_twenty_registrations_of_one_device_at_once_create_it_once(app, bearer, enrollment, rows):
    headers, agent = bearer(enrollment(max_uses=1)), Agent()
    request = partial(app.test_client().post, REGISTER, json=agent.proven(), headers=headers)
    assert statuses(at_once([request] * 20)) == [200] * 19 + [201]
    assert len(rows(DEVICES)) == 1
    assert uses(rows) == [1]


def test_one_device_with_many_keys_at_once_keeps_one_of_them(app, bearer, enrollment, rows):
    headers = bearer(enrollment())
    agents = [Agent("laptop") for _ in range(20)]
    requests = [partial(app.test_client().post, REGISTER, json=agent.proven(), headers=headers) for agent in agents]
    answers = at_once(requests)
    assert statuses(answers) == [201] + [409] * 19
    winner = next(agent for agent, answer in zip(agents, answers, strict=True) if answer.status_code == 201)
    stored = rows("SELECT public_key_pem, key_thumbprint FROM devices")
    assert stored == [{"public_key_pem": winner.public_key_pem, "key_thumbprint": winner.key.thumbprint()}]
    assert uses(rows) == [1]
    assert rows("SELECT count(*) AS n FROM compliance_events WHERE device_id = 'laptop'")[0]["n"] == 19


def test_a_forgotten_key_makes_room_for_one_of_many_new_keys_at_once(app, bearer, enrol, enrollment, operate, rows):
    enrol(Agent("laptop").proven())
    operate("device", "forget-key", "laptop")
    headers = bearer(enrollment())
    agents = [Agent("laptop") for _ in range(20)]
    requests = [partial(app.test_client().post, REGISTER, json=agent.proven(), headers=headers) for agent in agents]
    answers = at_once(requests)
    assert statuses(answers) == [200] + [409] * 19
    winner = next(agent for agent, answer in zip(agents, answers, strict=True) if answer.status_code == 200)
    assert rows("SELECT key_thumbprint FROM devices") == [{"key_thumbprint": winner.key.thumbprint()}]
    assert rows("SELECT count(*) AS n FROM compliance_events WHERE device_id = 'laptop'")[0]["n"] == 19


def test_registrations_of_one_device_at_once_each_leave_what_they_give(app, bearer, enrol, enrollment, rows):
    headers, agent = bearer(enrollment()), Agent()
    enrol(agent.proven())
    requests = [
        partial(app.test_client().post, REGISTER, json=agent.proven(**{field: value}), headers=headers)
        for field, value in METADATA.items()
    ]
    assert statuses(at_once(requests * 4)) == [200] * 16
    row = rows(DEVICE, agent.device_id)[0]
    assert {field: row[field] for field in METADATA} == METADATA


def test_many_devices_with_one_key_at_once_leave_it_to_one_of_them(app, bearer, enrollment, rows):
    headers, key = bearer(enrollment()), ECKey.generate_key("P-256")
    agents = [Agent(key=key) for _ in range(20)]
    requests = [partial(app.test_client().post, REGISTER, json=agent.proven(), headers=headers) for agent in agents]
    answers = at_once(requests)
    assert statuses(answers) == [201] + [409] * 19
    winner = next(answer.json["device_id"] for answer in answers if answer.status_code == 201)
    assert [row["device_id"] for row in rows("SELECT device_id FROM devices")] == [winner]
    assert uses(rows) == [1]


@pytest.mark.parametrize(
    ("agents", "expected"),
    [
        (lambda: [Agent("a"), Agent("b")], [201, 201]),
        (lambda: [Agent("a", key := ECKey.generate_key("P-256")), Agent("a", key)], [200, 201]),
        (lambda: [Agent("a"), Agent("a")], [201, 409]),
        (lambda: [Agent("a", key := ECKey.generate_key("P-256")), Agent("b", key)], [201, 409]),
    ],
    ids=["two devices", "one device and key", "one device, two keys", "two devices, one key"],
)
def test_two_workers_at_once_agree_on_who_registered(
    app, other_worker, bearer, enrollment, held, rows, agents, expected
):
    headers = bearer(enrollment())
    requests = [
        partial(worker.test_client().post, REGISTER, json=agent.proven(), headers=headers)
        for worker, agent in zip((app, other_worker), agents(), strict=True)
    ]
    assert statuses(held("SELECT uses FROM enrollments FOR UPDATE", requests)) == expected
    created = expected.count(201)
    assert len(rows(DEVICES)) == created
    assert uses(rows) == [created]


def test_two_workers_at_once_share_the_last_use_among_repeats(app, other_worker, bearer, enrollment, held, rows):
    headers, agent = bearer(enrollment(max_uses=1)), Agent()
    requests = [
        partial(worker.test_client().post, REGISTER, json=agent.proven(), headers=headers)
        for worker in (app, other_worker)
    ]
    assert statuses(held("SELECT uses FROM enrollments FOR UPDATE", requests)) == [200, 201]
    assert uses(rows) == [1]


def test_two_workers_at_once_do_not_exceed_the_last_use(app, other_worker, bearer, enrollment, held, rows):
    headers = bearer(enrollment(max_uses=1))
    requests = [
        partial(worker.test_client().post, REGISTER, json=Agent().proven(), headers=headers)
        for worker in (app, other_worker)
    ]
    assert statuses(held("SELECT uses FROM enrollments FOR UPDATE", requests)) == [201, 403]
    assert len(rows(DEVICES)) == 1
    assert uses(rows) == [1]


@pytest.mark.parametrize("field", ["device_id", "public_key_pem", "hostname"])
def test_a_required_field_must_be_there(enrol, rows, field):
    body = Agent().proven()
    del body[field]
    is_invalid(enrol(body), field)
    assert rows(DEVICES) == []


@pytest.mark.parametrize("field", ["device_id", "public_key_pem", "hostname"])
@pytest.mark.parametrize("value", [None, 5, 1.5, True, "", ["a"], {"a": "b"}], ids=repr)
def test_a_required_field_must_be_text(enrol, rows, field, value):
    is_invalid(enrol(Agent().proven(**{field: value})), field)
    assert rows(DEVICES) == []


@pytest.mark.parametrize(("field", "value"), WRONG_METADATA, ids=lambda value: repr(value)[:40])
def test_metadata_of_a_wrong_type_registers_nobody(enrol, rows, field, value):
    is_invalid(enrol(Agent().proven(**{field: value})), field)
    assert rows(DEVICES) == []


@pytest.mark.parametrize(
    "body", [b"[]", b'"text"', b"null", b"5", b"{", b"", b"\xff", b'{"device_id": "a", "device_id": "a"}']
)
@pytest.mark.parametrize("route", [REGISTER, HEARTBEAT])
def test_a_body_that_is_no_clean_object_is_400(client, bearer, enrollment, headers, route, body):
    authorization = bearer(enrollment()) if route == REGISTER else headers
    answer = client.post(route, data=body, content_type="application/json", headers=authorization)
    is_refused(answer, 400, "invalid-body")


INFINIBAND = "80:00:02:08:fe:80:00:00:00:00:00:00:00:1e:67:03:00:5b:0d:a1"
ADDRESSES = {
    "macs": [
        "00:1a:2b:3c:4d:5e",
        "00-1A-2B-3C-4D-5E",
        "00.1a.2b.3c.4d.5e",
        "001a.2b3c.4d5e",
        "001a2b3c4d5e",
        "00:1a:2b:3c:4d:5e:6f:70",
        "001a-2b3c-4d5e-6f70",
        "001A2B3C4D5E6F70",
        INFINIBAND,
        INFINIBAND.replace(":", ""),
        "ff:ff:ff:ff:ff:ff",
    ],
    "ips": [
        "192.0.2.7",
        "0.0.0.0",
        "192.0.2.7/24",
        "2001:db8::7",
        "2001:DB8:0:0::7/64",
        "::",
        "::ffff:192.0.2.7",
        "fe80::1%en0",
        "fe80::1%12",
        "fe80::1%eth0.100/64",
        "[::1]",
        "[fe80::1%en0]",
    ],
}
UNREADABLE: dict[str, list[Any]] = {
    "macs": [
        "",
        "00:1a:2b:3c:4d",
        "00:1a:2b:3c:4d:5g",
        "00:1a-2b:3c:4d:5e",
        "00:1a:2b:3c:4d:5e\n",
        "0:1a:2b:3c:4d:5e",
        "001a2b3c4d5",
        "192.0.2.7",
        "\u0660" * 12,
        "\ud800",
        None,
        5,
        ["00:1a:2b:3c:4d:5e"],
        {"en0": "00:1a:2b:3c:4d:5e"},
    ],
    "ips": [
        "",
        "192.0.2",
        "192.0.2.256",
        "192.0.2.7:80",
        "192.0.2.7/33",
        "::/129",
        "[::1",
        "::1]",
        "::1::",
        "fe80::1%",
        "localhost",
        "::1%\x00",
        "1\u0662.0.0.1",
        "\ud800",
        None,
        3221225991,
        ["192.0.2.7"],
    ],
}
KINDS_OF_ADDRESS = pytest.mark.parametrize("field", ["macs", "ips"])
DEVICE_ROUTES = pytest.mark.parametrize("route", [REGISTER, HEARTBEAT])


@pytest.fixture
def tell(client: Any, enrol: Any, device: Agent, headers: dict[str, str]) -> Callable[..., Any]:
    """Send metadata of `device` by a route, or as an item of a batch: tell(HEARTBEAT, macs=[...])."""

    def tell(route: str, **metadata: Any) -> Any:
        if route == REGISTER:
            return enrol(device.proven(**metadata))
        body = {"device_id": device.device_id, **metadata}
        if route == HEARTBEAT:
            return client.post(HEARTBEAT, json=body, headers=headers)
        batch = {"items": [{"type": "device_heartbeat", "body": body}]}
        answer = client.post("/api/batch", json=batch, headers=headers)
        assert answer.status_code == 200, answer.text
        return answer

    return tell


@DEVICE_ROUTES
@KINDS_OF_ADDRESS
def test_addresses_are_kept_as_written_without_warnings(tell, device, rows, route, field):
    answer = tell(route, **{field: ADDRESSES[field]})
    assert (answer.status_code, answer.json["warnings"]) == (200, [])
    assert rows(DEVICE, device.device_id)[0][field] == ADDRESSES[field]


@pytest.mark.parametrize("route", [REGISTER, HEARTBEAT, "/api/batch"])
@KINDS_OF_ADDRESS
def test_an_address_that_cannot_be_read_is_left_out_with_a_warning(tell, device, rows, route, field):
    for bad in UNREADABLE[field]:
        good = ADDRESSES[field][0]
        answer = tell(route, **{field: [good, bad]})
        assert answer.status_code == 200, bad
        told = answer.json["results"][0] if route == "/api/batch" else answer.json
        assert [warning.split(" ")[0] for warning in told["warnings"]] == [f"{field}[1]"], bad
        assert ascii(bad)[:20] in told["warnings"][0]
        assert rows(DEVICE, device.device_id)[0][field] == [good], bad


@pytest.mark.parametrize("route", [REGISTER, HEARTBEAT, "/api/batch"])
@KINDS_OF_ADDRESS
def test_addresses_none_of_which_can_be_read_overwrite_nothing(tell, device, rows, route, field):
    tell(REGISTER, **{field: ADDRESSES[field]})
    tell(route, **{field: ["?"] * 1001})
    assert rows(DEVICE, device.device_id)[0][field] == ADDRESSES[field]


@DEVICE_ROUTES
def test_warnings_are_few_however_many_addresses_cannot_be_read(tell, device, rows, route):
    answer = tell(route, macs=["?"] * 2000, ips=["192.0.2.7"] * 2000)
    assert (answer.status_code, len(answer.json["warnings"])) == (200, 52)
    assert len(rows(DEVICE, device.device_id)[0]["ips"]) == 1000


@pytest.mark.parametrize("route", [REGISTER, HEARTBEAT, "/api/batch"])
@pytest.mark.parametrize("blank", ["", " ", "\t\n\u00a0\u3000"], ids=ascii)
def test_empty_or_blank_metadata_is_absent(tell, device, rows, route, blank):
    tell(REGISTER, hostname="old", **METADATA)
    before = rows(DEVICE, device.device_id)[0]
    given = {"os": blank, "browsers": None} | ({} if route == REGISTER else {"hostname": blank})
    answer = tell(route, **given | ({"hostname": "old"} if route == REGISTER else {}))
    assert answer.status_code == 200
    assert rows(DEVICE, device.device_id)[0] | {"last_heartbeat": None} == before
    if route == REGISTER:
        is_invalid(tell(REGISTER, hostname=blank), "hostname")


@pytest.mark.parametrize("route", [HEARTBEAT, "/api/batch"])
@pytest.mark.parametrize("field", CHANGED)
def test_replayed_metadata_does_not_overwrite_newer_metadata(tell, device, rows, now_ms, route, field):
    tell(REGISTER, hostname="old", **METADATA)
    before = rows(DEVICE, device.device_id)[0]
    tell(route, **{field: CHANGED[field], "observed_at": now_ms - 3_600_000})
    after = rows(DEVICE, device.device_id)[0]
    assert after["last_heartbeat"] is not None
    assert after | {"last_heartbeat": None} == before
    tell(route, **{field: CHANGED[field], "observed_at": now_ms + 3_600_000})
    assert rows(DEVICE, device.device_id)[0][field] == CHANGED[field]
    # What is observed now is never older than what a clock said that was ahead.
    tell(route, **{field: before[field]})
    assert rows(DEVICE, device.device_id)[0][field] == before[field]


def test_a_batch_leaves_each_field_as_it_was_observed_last_in_any_order(client, tell, device, headers, rows, now_ms):
    rows("UPDATE devices SET hostname_at = NULL")
    tell(HEARTBEAT, os="live", observed_at=now_ms - 1500)
    observed = [(-1000, {"hostname": "late"}), (-2000, {"hostname": "early", "os": "early", "browsers": ["early"]})]
    items = [
        {"type": "device_heartbeat", "body": {"device_id": device.device_id, "observed_at": now_ms + ago, **metadata}}
        for ago, metadata in observed
    ]
    assert client.post("/api/batch", json={"items": items}, headers=headers).status_code == 200
    row = rows(DEVICE, device.device_id)[0]
    assert (row["hostname"], row["os"], row["browsers"]) == ("late", "live", ["early"])


@pytest.mark.parametrize("value", [1_700_000_000, "1700000000000", True, 1.5, 9_999_999_999_999], ids=repr)
def test_a_time_of_observation_must_be_plausible_epoch_milliseconds(beat, value):
    is_invalid(beat(observed_at=value), "observed_at")


def test_a_token_of_a_replaced_key_is_401_at_once(client, enrol, access, operate, device, headers, rows):
    """After forget-key, and after a registration with another key; the whole batch alike."""
    body = {"device_id": device.device_id}
    browser = {**body, "instance_id": "instance", "browser_name": "chrome"}
    status = {"instance_id": "instance", "status": "enabled"}
    event = {**body, "event_type": "tamper_detected", "severity": "high"}
    prompt = {**body, "instance_id": "i", "site": "s", "url": "u", "prompt": "p", "timestamp": 1_700_000_000_000}
    sent = {
        HEARTBEAT: {**body, "hostname": "new"},
        "/api/browsers/register": browser,
        "/api/browsers/heartbeat": browser,
        "/api/extension/status": status,
        "/api/compliance/event": event,
        "/api/prompt": prompt,
    }
    types = ("device_heartbeat", "browser_register", "browser_heartbeat", "extension_status", "compliance_event")
    items = [{"type": type_, "body": item} for type_, item in zip((*types, "prompt"), sent.values(), strict=True)]
    sent["/api/batch"] = {"items": items}
    sent |= {f"/api/batch?{item['type']}": {"items": [item]} for item in items}

    def all_refused() -> None:
        for route, json_ in sent.items():
            answer = client.post(route, json=json_, headers=headers)
            is_refused(answer, 401, "invalid-token")
            assert answer.headers["WWW-Authenticate"].startswith('Bearer error="invalid_token"')
        assert rows(DEVICES) == before
        for table in ("browser_instances", "prompts", "extension_status", "compliance_events"):
            assert rows(f"SELECT * FROM {table}") == []

    operate("device", "forget-key", device.device_id)
    before = rows(DEVICES)
    all_refused()
    reinstalled = Agent(device.device_id)
    enrol(reinstalled.proven())
    before = rows(DEVICES)
    all_refused()
    new = access(reinstalled)
    assert {client.post(route, json=json_, headers=new).status_code for route, json_ in sent.items()} <= {200, 201}


def test_heartbeats_with_tokens_of_two_keys_at_once_are_each_decided_on(app, enrol, access, operate, device, headers):
    operate("device", "forget-key", device.device_id)
    reinstalled = Agent(device.device_id)
    enrol(reinstalled.proven())
    body = {"device_id": device.device_id}
    requests = [
        partial(app.test_client().post, HEARTBEAT, json=body, headers=each) for each in (headers, access(reinstalled))
    ]
    assert [answer.status_code for answer in at_once(requests * 10)] == [401, 200] * 10


def test_a_revoked_device_is_403_whatever_became_of_its_key(beat, device, operate):
    operate("device", "forget-key", device.device_id)
    operate("device", "revoke", device.device_id)
    is_refused(beat(), 403, "device-revoked")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("os", "macOS 14.5"),
        ("os", {}),
        ("os", {"name": "Linux", "kernel": {"release": [6, 8, 0]}, "lts": True, "eol": None, "load": 0.5}),
        ("browsers", []),
        ("browsers", ["firefox", "chrome"]),
        ("browsers", [{"name": "firefox", "profiles": 2}, "chrome"]),
        ("browsers", [{}]),
        ("macs", []),
        ("ips", []),
    ],
    ids=repr,
)
@pytest.mark.parametrize("route", [REGISTER, HEARTBEAT])
def test_metadata_is_stored_as_sent(enrol, beat, device, rows, route, field, value):
    body = {"os": "old", "browsers": ["old"], "macs": METADATA["macs"], "ips": METADATA["ips"]}
    enrol(device.proven(**body))
    answer = enrol(device.proven(**{field: value})) if route == REGISTER else beat(**{field: value})
    assert answer.status_code == 200
    assert rows(DEVICE, device.device_id)[0][field] == value


def test_a_registration_keeps_the_time_that_it_gives(enrol, rows):
    agent = Agent()
    assert enrol(agent.proven(registered_at=1_700_000_000_123)).json["registered_at"] == "2023-11-14T22:13:20.123000Z"
    assert rows(DEVICE, agent.device_id)[0]["registered_at"] == datetime(2023, 11, 14, 22, 13, 20, 123_000, UTC)


@pytest.mark.parametrize("ahead_ms", [-1000, 23 * 3_600_000])
def test_a_registration_may_come_from_a_clock_that_is_off(enrol, now_ms, ahead_ms):
    assert enrol(Agent().proven(registered_at=now_ms + ahead_ms)).status_code == 201


@pytest.mark.parametrize(
    "value",
    [
        1_700_000_000,
        1_420_070_399_999,
        0,
        -1,
        9_999_999_999_999,
        2**63,
        1_700_000_000_000.0,
        "1700000000000",
        "2023-11-14T22:13:20Z",
        True,
        [1_700_000_000_000],
    ],
    ids=repr,
)
def test_a_time_that_is_no_plausible_epoch_milliseconds_is_refused(enrol, rows, value):
    is_refused(enrol(Agent().proven(registered_at=value)), 400, "invalid-body")
    assert rows(DEVICES) == []


def test_a_time_more_than_a_day_ahead_is_refused(enrol, now_ms):
    is_invalid(enrol(Agent().proven(registered_at=now_ms + 25 * 3_600_000)), "registered_at")


@pytest.mark.parametrize("device_id", HOSTILE_IDS, ids=ascii)
def test_a_hostile_device_id_is_refused(enrol, rows, device_id):
    is_invalid(enrol(Agent().proven(device_id=device_id)), "device_id")
    assert rows(DEVICES) == []


@pytest.mark.parametrize(
    "device_id", ["a", "~" * 128, "';DROP/**/TABLE/**/devices;--", '{"a":1}', "%(rows)s", "\\u0000"]
)
def test_an_odd_device_id_is_only_text(enrol, access, client, rows, device_id):
    agent = Agent(device_id)
    assert enrol(agent.proven()).json["device_id"] == device_id
    assert client.post(HEARTBEAT, json={"device_id": device_id}, headers=access(agent)).status_code == 200
    assert [row["device_id"] for row in rows("SELECT device_id FROM devices")] == [device_id]


@pytest.mark.parametrize("route", [REGISTER, HEARTBEAT])
def test_characters_that_the_database_cannot_hold_are_replaced(
    client, bearer, enrollment, device, headers, rows, route
):
    body = json.dumps(device.proven(hostname="TEXT", os={"TEXT": ["TEXT"]}, browsers=["TEXT", {"name": "TEXT"}]))
    answer = client.post(
        route,
        data=body.encode().replace(b"TEXT", HOSTILE_TEXT),
        content_type="application/json",
        headers=bearer(enrollment()) if route == REGISTER else headers,
    )
    assert answer.status_code == 200, answer.text
    row = rows(DEVICE, device.device_id)[0]
    assert row["hostname"] == STORED_TEXT
    assert row["os"] == {STORED_TEXT: [STORED_TEXT]}
    assert row["browsers"] == [STORED_TEXT, {"name": STORED_TEXT}]


def test_a_heartbeat_is_noted_at_the_databases_time(beat, device, rows):
    before = rows("SELECT now()")[0]["now"]
    answer = beat()
    assert answer.status_code == 200
    row = rows(DEVICE, device.device_id)[0]
    assert before <= row["last_heartbeat"] <= rows("SELECT now()")[0]["now"]
    assert answer.json["device_id"] == device.device_id
    assert answer.json["last_heartbeat"].endswith("Z")
    assert datetime.fromisoformat(answer.json["last_heartbeat"]) == row["last_heartbeat"]


def test_a_heartbeat_tells_the_servers_time(beat, now_ms):
    server_time = beat().json["server_time"]
    assert type(server_time) is int
    assert now_ms <= server_time <= time.time() * 1000


def test_a_heartbeat_tells_when_to_send_the_next(app, settings, beat):
    assert beat().json["heartbeat_interval_s"] == settings.heartbeat_seconds
    app.extensions["writer"].settings = dataclasses.replace(settings, heartbeat_seconds=17)
    assert beat().json["heartbeat_interval_s"] == 17


def test_each_heartbeat_moves_last_heartbeat_on(beat, device, rows):
    beat()
    first = rows(DEVICE, device.device_id)[0]["last_heartbeat"]
    beat()
    assert rows(DEVICE, device.device_id)[0]["last_heartbeat"] > first


def test_a_heartbeat_without_metadata_changes_none(enrol, beat, device, rows):
    enrol(device.proven(**METADATA))
    before = rows(DEVICE, device.device_id)[0]
    beat()
    after = rows(DEVICE, device.device_id)[0]
    assert after["last_heartbeat"] is not None
    assert after | {"last_heartbeat": None} == before


@pytest.mark.parametrize("field", CHANGED)
def test_a_heartbeat_overwrites_only_what_it_gives(enrol, beat, device, rows, field):
    enrol(device.proven(**METADATA))
    before = rows(DEVICE, device.device_id)[0]
    assert beat(**{field: CHANGED[field]}).status_code == 200
    after = rows(DEVICE, device.device_id)[0]
    assert after | {"last_heartbeat": None} == before | {field: CHANGED[field]}


@pytest.mark.parametrize("field", CHANGED)
def test_a_null_in_a_heartbeat_changes_nothing(enrol, beat, device, rows, field):
    enrol(device.proven(**METADATA))
    before = rows(DEVICE, device.device_id)[0]
    assert beat(**{field: None}).status_code == 200
    assert rows(DEVICE, device.device_id)[0] | {"last_heartbeat": None} == before


def test_a_heartbeat_ignores_unknown_fields(beat, device, rows):
    before = rows(DEVICE, device.device_id)[0]
    more = {"color": "red", "public_key_pem": "x", "key_thumbprint": "x", "registered_at": 5, "revoked_at": "now"}
    assert beat(**more).status_code == 200
    assert rows(DEVICE, device.device_id)[0] | {"last_heartbeat": None} == before


def test_last_heartbeat_never_moves_back(beat, device, rows):
    future = rows("UPDATE devices SET last_heartbeat = now() + interval '1 hour' RETURNING last_heartbeat")[0]
    answer = beat(hostname="new")
    assert answer.status_code == 200
    assert datetime.fromisoformat(answer.json["last_heartbeat"]) == future["last_heartbeat"]
    row = rows(DEVICE, device.device_id)[0]
    assert (row["last_heartbeat"], row["hostname"]) == (future["last_heartbeat"], "new")


def test_a_heartbeat_makes_a_lost_row_again(beat, device, rows):
    rows("DELETE FROM devices")
    answer = beat(**CHANGED)
    assert answer.status_code == 201
    row = rows(DEVICE, device.device_id)[0]
    assert {name: row[name] for name in CHANGED} == CHANGED
    assert datetime.fromisoformat(answer.json["last_heartbeat"]) == row["last_heartbeat"]
    assert beat().status_code == 200


def test_after_a_lost_row_only_the_same_key_registers_again(enrol, beat, device, rows, access):
    rows("DELETE FROM devices")
    beat()
    is_refused(enrol(Agent(device.device_id).proven()), 409, "key-conflict")
    assert rows(DEVICE, device.device_id)[0]["public_key_pem"] is None
    assert enrol(device.proven()).status_code == 200
    assert rows(DEVICE, device.device_id)[0]["public_key_pem"] == device.public_key_pem
    assert access(device)


def test_a_lost_row_whose_key_has_gone_to_another_device_is_not_made_again(enrol, beat, device, rows):
    rows("DELETE FROM devices")
    assert enrol(Agent("other", device.key).proven()).status_code == 201
    assert 400 <= beat().status_code < 500
    assert [row["device_id"] for row in rows("SELECT device_id FROM devices")] == ["other"]


def test_a_lost_row_that_cannot_be_made_again_costs_the_others_nothing(app, enrol, register, access, rows):
    agents = [register() for _ in range(20)]
    requests = [
        partial(app.test_client().post, HEARTBEAT, json={"device_id": agent.device_id}, headers=access(agent))
        for agent in agents
    ]
    rows("DELETE FROM devices WHERE device_id = %s", agents[0].device_id)
    assert enrol(Agent("other", agents[0].key).proven()).status_code == 201
    answers = at_once(requests)
    assert [answer.status_code for answer in answers[1:]] == [200] * 19
    assert 400 <= answers[0].status_code < 500


def test_a_revoked_device_is_refused_at_once_until_it_is_restored(beat, device, operate, rows):
    beat()
    operate("device", "revoke", device.device_id)
    before = rows(DEVICES)
    is_refused(beat(hostname="new"), 403, "device-revoked")
    assert rows(DEVICES) == before
    operate("device", "restore", device.device_id)
    assert beat(hostname="new").status_code == 200


def test_a_heartbeat_for_another_device_is_refused(register, beat, rows):
    other = register()
    is_refused(beat(device_id=other.device_id), 403, "other-device")
    assert rows(DEVICE, other.device_id)[0]["last_heartbeat"] is None


def test_a_heartbeat_for_a_device_that_does_not_exist_makes_none(beat, rows):
    is_refused(beat(device_id="nobody"), 403, "other-device")
    assert rows(DEVICE, "nobody") == []


@pytest.mark.parametrize("scope", ["browsers:write", "extension:write prompts:write compliance:write"])
def test_a_heartbeat_needs_its_scope(client, device, access, rows, scope):
    answer = client.post(HEARTBEAT, json={"device_id": device.device_id}, headers=access(device, scope))
    is_refused(answer, 403, "insufficient-scope")
    assert rows(DEVICE, device.device_id)[0]["last_heartbeat"] is None


def test_an_enrolment_token_sends_no_heartbeat(client, device, bearer, enrollment):
    answer = client.post(HEARTBEAT, json={"device_id": device.device_id}, headers=bearer(enrollment()))
    is_refused(answer, 403, "insufficient-scope")


def test_a_heartbeat_needs_a_device_id(client, headers):
    is_invalid(client.post(HEARTBEAT, json={"hostname": "laptop"}, headers=headers), "device_id")


@pytest.mark.parametrize("device_id", [None, 5, 1.5, True, ["a"], {"a": "b"}, *HOSTILE_IDS], ids=ascii)
def test_a_heartbeat_with_a_wrong_device_id_is_invalid(beat, device_id):
    is_invalid(beat(device_id=device_id), "device_id")


@pytest.mark.parametrize(("field", "value"), WRONG_METADATA, ids=lambda value: repr(value)[:40])
def test_metadata_of_a_wrong_type_makes_no_heartbeat(beat, device, rows, field, value):
    before = rows(DEVICE, device.device_id)
    is_invalid(beat(**{field: value}), field)
    assert rows(DEVICE, device.device_id) == before


def test_heartbeats_of_many_devices_at_once_are_all_noted(app, register, access, rows):
    agents = [register() for _ in range(20)]
    requests = [
        partial(
            app.test_client().post,
            HEARTBEAT,
            json={"device_id": agent.device_id, "hostname": f"new-{agent.device_id}"},
            headers=access(agent),
        )
        for agent in agents
    ]
    answers = at_once(requests)
    assert statuses(answers) == [200] * 20
    assert [answer.json["device_id"] for answer in answers] == [agent.device_id for agent in agents]
    hostnames = {
        row["device_id"]: row["hostname"] for row in rows("SELECT * FROM devices WHERE last_heartbeat > '-infinity'")
    }
    assert hostnames == {agent.device_id: f"new-{agent.device_id}" for agent in agents}


def test_heartbeats_of_one_device_at_once_each_leave_what_they_give(app, device, headers, rows):
    requests = [
        partial(app.test_client().post, HEARTBEAT, json={"device_id": device.device_id, name: value}, headers=headers)
        for name, value in CHANGED.items()
    ]
    assert statuses(at_once(requests * 4)) == [200] * 20
    stored = rows(DEVICES)
    assert len(stored) == 1
    assert {name: stored[0][name] for name in CHANGED} == CHANGED


def test_heartbeats_at_once_make_a_lost_row_once(app, device, headers, rows):
    rows("DELETE FROM devices")
    request = partial(app.test_client().post, HEARTBEAT, json={"device_id": device.device_id}, headers=headers)
    assert statuses(at_once([request] * 20)) == [200] * 19 + [201]
    assert [row["device_id"] for row in rows("SELECT device_id FROM devices")] == [device.device_id]


def test_a_revoked_devices_heartbeat_costs_the_others_nothing(app, register, access, operate):
    agents = [register() for _ in range(10)]
    requests = [
        partial(app.test_client().post, HEARTBEAT, json={"device_id": agent.device_id}, headers=access(agent))
        for agent in agents
    ]
    operate("device", "revoke", agents[5].device_id)
    answers = at_once(requests)
    assert [answer.status_code for answer in answers] == [200] * 5 + [403] + [200] * 4


def test_two_workers_at_once_make_a_lost_row_once(app, other_worker, device, headers, held, rows):
    rows("DELETE FROM devices")
    requests = [
        partial(worker.test_client().post, HEARTBEAT, json={"device_id": device.device_id}, headers=headers)
        for worker in (app, other_worker)
    ]
    assert statuses(held("LOCK TABLE devices IN SHARE MODE", requests)) == [200, 201]
    assert len(rows(DEVICES)) == 1
