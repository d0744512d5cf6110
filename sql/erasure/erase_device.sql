-- Blank what a device's own row says of its user. Its id, its key and a revocation stay. A repeat changes nothing.
--
-- device_id  text
--
-- Returns  no row when there is none, or when a hold is in force on it; else: device_id
-- Index    devices_pkey, legal_holds_device_id_idx
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
    -- Its row has no time: a hold of this device, of whatever time, holds it.
    AND NOT EXISTS (
        SELECT FROM legal_holds
        WHERE legal_holds.device_id = %(device_id)s AND legal_holds.released_at IS NULL
    )
RETURNING device_id;
