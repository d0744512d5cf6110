-- Forget a device's key, so that it can register once with a new one. A repeat changes nothing.
--
-- device_id  text
--
-- Returns  no row when there is none, else: device_id
-- Index    devices_pkey
-- Locks    the device's row
-- Load     operators only
UPDATE devices
SET
    public_key_pem = NULL,
    key_thumbprint = NULL
WHERE device_id = %(device_id)s
RETURNING device_id;
