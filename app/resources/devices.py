"""Devices: the laptops that an agent runs on."""

from __future__ import annotations

import time
import uuid
from typing import Any

import marshmallow as ma

from app.api import fields
from app.api.bodies import Blueprint
from app.api.openapi import example, refusals
from app.api.scopes import REGISTER
from app.auth import require, token
from app.auth.keys import MAX_PEM, DeviceKey, KeyRefused, device_key
from app.db import db, statement
from app.ingest.fast_path import express
from app.ingest.record_types import Write, accepted
from app.limits.admission import LOW, NORMAL

blp = Blueprint("devices", __name__, url_prefix="/api/devices", description="Laptops with an agent.")


class PublicKey(ma.fields.Field[DeviceKey]):
    """A device's public key, in PEM."""

    json_schema = {"type": "string", "maxLength": MAX_PEM}
    default_error_messages = {"invalid": "Not a valid string."}

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> DeviceKey:
        if not isinstance(value, str):
            raise self.make_error("invalid")
        try:
            return device_key(value)
        except KeyRefused as refusal:
            raise ma.ValidationError(str(refusal)) from None


class DeviceMetadata(fields.Schema):
    macs = fields.Addresses("mac", load_default=None)
    ips = fields.Addresses("ip", load_default=None)
    os = fields.Json(str, dict, load_default=None)
    browsers = fields.Json(list, of=(str, dict), load_default=None)


class RegisterDeviceRequest(DeviceMetadata):
    device_id = fields.Identifier(required=True)
    public_key_pem = PublicKey(
        required=True, metadata={"description": "EC P-256, RSA of 2048 to 4096 bits, or Ed25519."}
    )
    hostname = fields.Text(required=True, empty=False)
    registered_at = fields.EpochMilliseconds(load_default=None)


class DeviceHeartbeatRequest(DeviceMetadata):
    device_id = fields.Identifier(required=True)
    hostname = fields.Text(load_default=None, metadata={"description": "This and the others only when they changed."})


class RegisterDeviceResponse(fields.Answer):
    device_id = ma.fields.String(required=True)
    key_thumbprint = ma.fields.String(required=True, metadata={"description": "RFC 7638, SHA-256."})
    registered_at = fields.Time(required=True)


class DeviceHeartbeatResponse(fields.Answer):
    device_id = ma.fields.String(required=True)
    last_heartbeat = fields.Time(required=True)
    server_time = ma.fields.Integer(required=True, metadata={"description": "Epoch milliseconds."})
    heartbeat_interval_s = ma.fields.Integer(required=True, metadata={"description": "When to send the next."})


REGISTER_DEVICES = statement("devices/register_devices")

DEVICE_REGISTER = Write(
    "device_register",
    scope=REGISTER,
    schema=RegisterDeviceRequest(),
    answer=RegisterDeviceResponse(),
    statement=REGISTER_DEVICES,
    again=REGISTER_DEVICES,
    id="device_id",
    priority=NORMAL,
)
UPSERT_HEARTBEATS = statement("devices/upsert_heartbeats")
DEVICE_HEARTBEAT = Write(
    "device_heartbeat",
    scope="devices:write",
    schema=DeviceHeartbeatRequest(),
    answer=DeviceHeartbeatResponse(),
    statement=UPSERT_HEARTBEATS,
    again=UPSERT_HEARTBEATS,
    id="device_id",
    priority=LOW,
    beats=True,
)


@blp.route("/register", methods=["POST"])
@require(DEVICE_REGISTER.scope, priority=DEVICE_REGISTER.priority)
@blp.arguments(DEVICE_REGISTER.schema, example=example("device_register"))
@blp.response(201, DEVICE_REGISTER.answer)
@refusals(RegisterDeviceResponse, 409)
def register(device: dict[str, Any]) -> Any:
    """Register a device by its public key, with an enrolment token."""
    key: DeviceKey = device.pop("public_key_pem")
    row = {
        **device,
        "public_key_pem": key.pem,
        "key_thumbprint": key.thumbprint,
        "enrollment_id": token().id,
        "event_id": str(uuid.uuid4()),
        "detected_at": int(time.time() * 1000),
    }
    return accepted(db.write(DEVICE_REGISTER, row))


@blp.route("/heartbeat", methods=["POST"])
@express(DEVICE_HEARTBEAT)
@require(DEVICE_HEARTBEAT.scope, priority=DEVICE_HEARTBEAT.priority)
@blp.arguments(DEVICE_HEARTBEAT.schema, example=example("device_heartbeat"))
@blp.response(201, DEVICE_HEARTBEAT.answer)
@refusals(DeviceHeartbeatResponse, 409)
def heartbeat(device: dict[str, Any]) -> Any:
    """Note that a device is alive."""
    return DEVICE_HEARTBEAT.store(device)
