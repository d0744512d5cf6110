-- Blank what a device's own row says of its user. Its id, its key and a revocation stay. A repeat changes nothing.
--
-- device_id  text
--
-- Returns  no row when there is none, else: device_id
-- Index    devices_pkey
-- Locks    the device's row
-- Load     operators only
UPDATE devices
SET
    hostname = NULL,
    macs = NULL,
    ips = NULL,
    os = NULL,
    browsers = NULL
WHERE device_id = %(device_id)s
RETURNING device_id;
