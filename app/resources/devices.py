"""Devices: the laptops that an agent runs on."""

from __future__ import annotations

import time
import uuid
from typing import Any

import marshmallow as ma

from app import fields
from app.addresses import Addresses, Warnings
from app.auth import require, token
from app.auth.keys import LONGEST_PEM, DeviceKey, KeyRefused, device_key
from app.db import db, statement
from app.express import express
from app.limits import HEARTBEATS, REPORTS
from app.openapi import example, refusals
from app.requests import Blueprint
from app.scopes import REGISTER
from app.writes import Write, accepted

blp = Blueprint("devices", __name__, url_prefix="/api/devices", description="Laptops with an agent.")


class PublicKey(ma.fields.Field[DeviceKey]):
    """A device's public key, in PEM."""

    json_schema = {"type": "string", "maxLength": LONGEST_PEM}
    default_error_messages = {"invalid": "Not a valid string."}

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> DeviceKey:
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


DEVICE_REGISTER = Write(
    "device_register",
    scope=REGISTER,
    schema=RegisterDeviceRequest(),
    answer=RegisterDeviceResponse(),
    statement=statement("devices/register_devices"),
    again=statement("devices/record_conflicts"),
    id="device_id",
    share=REPORTS,
)
DEVICE_HEARTBEAT = Write(
    "device_heartbeat",
    scope="devices:write",
    schema=DeviceHeartbeatRequest(),
    answer=DeviceHeartbeatResponse(),
    statement=statement("devices/upsert_heartbeats"),
    again=statement("devices/select_refusals"),
    id="device_id",
    share=HEARTBEATS,
    beats=True,
)


@blp.route("/register", methods=["POST"])
@require(DEVICE_REGISTER.scope, share=DEVICE_REGISTER.share)
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
@require(DEVICE_HEARTBEAT.scope, share=DEVICE_HEARTBEAT.share)
@blp.arguments(DEVICE_HEARTBEAT.schema, example=example("device_heartbeat"))
@blp.response(201, DEVICE_HEARTBEAT.answer)
@refusals(DeviceHeartbeatResponse, 409)
def heartbeat(device: dict[str, Any]) -> Any:
    """Record a device's heartbeat."""
    return DEVICE_HEARTBEAT.store(device)
