"""Values that the examples of the OpenAPI description share, so that they tell one story."""

DEVICE_ID = "laptop-7f3a"
INSTANCE_ID = "chrome-profile-1"
TIME_MS = 1_767_225_600_000
