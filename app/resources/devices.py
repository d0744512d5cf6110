"""Devices: the laptops that an agent runs on."""

from __future__ import annotations

import time
import uuid
from typing import Any

import marshmallow as ma

from app.api import fields, problems
from app.api.addresses import Addresses, Warnings
from app.api.bodies import Blueprint
from app.api.openapi import refusals
from app.api.samples import DEVICE_ID, TIME_MS
from app.api.schemas import RequestField
from app.api.scopes import REGISTER
from app.auth import Principal, auth, jws, proof, require
from app.auth.device_keys import MAX_PEM, DeviceKey, KeyRefused, device_key
from app.db import statement
from app.ingest import pipeline
from app.ingest.fast_path import fast_path
from app.ingest.record_types import RecordType
from app.limits.admission import LOW, NORMAL

blp = Blueprint("devices", __name__, url_prefix="/api/devices", description="Laptops with an agent.")


class PublicKey(RequestField[DeviceKey]):
    """A device's public key, in PEM."""

    json_schema = {"type": "string", "maxLength": MAX_PEM}
    default_error_messages = {"invalid": "Not a valid string."}

    def read(self, value: Any) -> DeviceKey:
        if not isinstance(value, str):
            raise self.make_error("invalid")
        try:
            return device_key(value)
        except KeyRefused as refusal:
            raise ma.ValidationError(str(refusal)) from None


class DeviceMetadata(fields.Schema):
    macs = Addresses("mac", load_default=None)
    ips = Addresses("ip", load_default=None)
    os = fields.Json(str, dict, load_default=None)
    browsers = fields.Json(list, of=(str, dict), load_default=None)

    def load(self, data: Any, **kwargs: Any) -> Any:
        """The row, with `warnings`: a sentence for each address that is left out because it can't be read."""
        row = super().load(data, **kwargs)
        row["warnings"] = []
        for name, field in self.load_fields.items():
            if isinstance(field, Addresses) and row[name]:
                row[name], warnings = field.readable(row[name])
                row["warnings"] += warnings
        if isinstance(row["os"], str) and not row["os"].strip():
            row["os"] = None
        return row


class RegisterDeviceRequest(DeviceMetadata):
    device_id = fields.Identifier(required=True)
    public_key_pem = PublicKey(
        required=True, metadata={"description": "EC P-256, RSA of 2048 to 4096 bits, or Ed25519."}
    )
    hostname = fields.MetadataText(required=True)
    registered_at = fields.EpochMilliseconds(load_default=None)
    proof = fields.Text(
        load_default=None,
        metadata={
            "description": "A JWT signed with the device's key, like a client assertion with the URL of this route as "
            "`aud`. Without it the metadata of a known device stays as it is."
        },
    )


class DeviceHeartbeatRequest(DeviceMetadata):
    device_id = fields.Identifier(required=True)
    hostname = fields.MetadataText(
        load_default=None, metadata={"description": "This and the others only when they changed."}
    )
    observed_at = fields.EpochMilliseconds(
        load_default=None, metadata={"description": "Metadata observed then does not overwrite newer metadata."}
    )


class RegisterDeviceResponse(fields.Answer):
    device_id = ma.fields.String(required=True)
    key_thumbprint = ma.fields.String(required=True, metadata={"description": "RFC 7638, SHA-256."})
    registered_at = fields.Time(required=True)
    warnings = Warnings()


class DeviceHeartbeatResponse(fields.Answer):
    device_id = ma.fields.String(required=True)
    last_heartbeat = fields.Time(required=True)
    warnings = Warnings()
    server_time = ma.fields.Integer(required=True, metadata={"description": "Epoch milliseconds."})
    heartbeat_interval_s = ma.fields.Integer(required=True, metadata={"description": "When to send the next."})


def build_registration(body: dict[str, Any], enrollment: Principal) -> dict[str, Any]:
    """The row of a registration, with its enrolment and what a conflict event would need. Raises Problem 400."""
    key: DeviceKey = body.pop("public_key_pem")
    text = body.pop("proof")
    if text is not None:
        try:
            proof.check(text, body["device_id"], key, auth.issuer + "/api/devices/register")
        except jws.TokenRefused as refusal:
            raise problems.invalid({"json": {"proof": [str(refusal)]}}) from None
    elif auth.settings.require_proof:
        raise problems.invalid({"json": {"proof": ["Missing data for required field."]}})
    return {
        **body,
        "has_proof": text is not None,
        "public_key_pem": key.pem,
        "key_thumbprint": key.thumbprint,
        "enrollment_id": enrollment.id,
        "event_id": str(uuid.uuid4()),
        "detected_at": int(time.time() * 1000),
    }


DEVICE_REGISTER = RecordType(
    name="device_register",
    table="devices",
    example={
        "device_id": DEVICE_ID,
        "public_key_pem": "-----BEGIN PUBLIC KEY-----\n"
        "MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n"
        "-----END PUBLIC KEY-----\n",
        "hostname": "anna-macbook",
        "macs": ["a4:83:e7:11:22:33"],
        "ips": ["10.1.2.3", "fe80::1"],
        "os": {"name": "macOS", "version": "26.1"},
        "browsers": ["chrome", {"name": "firefox", "version": "146"}],
        "registered_at": TIME_MS,
    },
    scope=REGISTER,
    schema=RegisterDeviceRequest(),
    answer=RegisterDeviceResponse(),
    statement=statement("devices/register_devices"),
    duplicate_check=statement("devices/record_conflicts"),
    id_field="device_id",
    priority=NORMAL,
    in_batch=False,
    build=build_registration,
)
DEVICE_HEARTBEAT = RecordType(
    name="device_heartbeat",
    table="devices",
    example={"device_id": DEVICE_ID, "ips": ["10.1.2.9"]},
    scope="devices:write",
    schema=DeviceHeartbeatRequest(),
    answer=DeviceHeartbeatResponse(),
    statement=statement("devices/upsert_heartbeats"),
    duplicate_check=statement("devices/select_refusals"),
    id_field="device_id",
    priority=LOW,
    is_heartbeat=True,
)


@blp.route("/register", methods=["POST"])
@require(DEVICE_REGISTER.scope, priority=DEVICE_REGISTER.priority)
@blp.arguments(DEVICE_REGISTER.schema, example=DEVICE_REGISTER.example)
@blp.response(201, DEVICE_REGISTER.answer)
@refusals(RegisterDeviceResponse, 409)
def register(device: dict[str, Any]) -> Any:
    """Register a device by its public key, with an enrolment token."""
    return pipeline.store(DEVICE_REGISTER, device)


@blp.route("/heartbeat", methods=["POST"])
@fast_path(DEVICE_HEARTBEAT)
@require(DEVICE_HEARTBEAT.scope, priority=DEVICE_HEARTBEAT.priority)
@blp.arguments(DEVICE_HEARTBEAT.schema, example=DEVICE_HEARTBEAT.example)
@blp.response(201, DEVICE_HEARTBEAT.answer)
@refusals(DeviceHeartbeatResponse, 409)
def heartbeat(device: dict[str, Any]) -> Any:
    """Record a device's heartbeat."""
    return pipeline.store(DEVICE_HEARTBEAT, device)
