-- Blank what a device's own row says of its user. Its id, its key and a revocation stay. A repeat changes nothing.
--
-- device_id  text
--
-- Returns  no row when there is none, or when a hold is in force on it; else: device_id
-- Index    devices_pkey
-- Calls    is_device_held, once: looks holds up by legal_holds_device_id_idx
-- Locks    the device's row
-- Load     operators only
UPDATE devices
SET
    hostname = NULL,
    macs = NULL,
    ips = NULL,
    os = NULL,
    browsers = NULL,
    erased_at = now()
WHERE
    device_id = %(device_id)s
    AND NOT is_device_held(device_id)
RETURNING device_id;
