-- Show one device.
--
-- device_id  text
--
-- Returns  no row or one: every column but the key itself
-- Index    devices_pkey
-- Load     operators only
SELECT
    device_id,
    hostname,
    macs,
    ips,
    os,
    browsers,
    key_thumbprint,
    registered_at,
    last_heartbeat,
    revoked_at,
    archived_at
FROM devices
WHERE device_id = %(device_id)s;
