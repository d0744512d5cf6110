-- List a page of devices by id, for the operator's command line.
--
-- after   text     the last device_id of the page before; empty for the first page
-- amount  integer  rows a page
--
-- Returns  device_id, hostname, registered_at, last_heartbeat, revoked_at, archived_at, has_key
-- Index    devices_pkey
-- Load     operators only
SELECT
    device_id,
    hostname,
    registered_at,
    last_heartbeat,
    revoked_at,
    archived_at,
    key_thumbprint IS NOT NULL AS has_key
FROM devices
WHERE device_id > %(after)s
ORDER BY device_id
LIMIT %(amount)s;
