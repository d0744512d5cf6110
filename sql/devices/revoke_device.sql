-- Revoke a device: its next write is refused. A repeat keeps the first time.
--
-- device_id  text
--
-- Returns  no row when there is none, else: device_id, revoked_at
-- Index    devices_pkey
-- Locks    the device's row
-- Load     operators only
UPDATE devices
SET revoked_at = least(revoked_at, now())
WHERE device_id = %(device_id)s
RETURNING device_id, revoked_at;
