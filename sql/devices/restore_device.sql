-- Let a revoked device write again. A repeat changes nothing.
--
-- device_id  text
--
-- Returns  no row when there is none, else: device_id, revoked_at (null)
-- Index    devices_pkey
-- Locks    the device's row
-- Load     operators only
UPDATE devices
SET revoked_at = NULL
WHERE device_id = %(device_id)s
RETURNING device_id, revoked_at;
