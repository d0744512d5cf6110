"""The table of contents: each resource's blueprint, in the order of the documentation."""

from app.resources import batch, browsers, compliance, devices, extension, prompts, service, tokens

BLUEPRINTS = [
    tokens.blp,
    devices.blp,
    prompts.blp,
    browsers.blp,
    extension.blp,
    compliance.blp,
    batch.blp,
    service.blp,
]
