-- Count devices of which nothing arrived for long and are not archived yet.
--
-- seconds  bigint  nothing of it arrived for so long
--
-- Returns  one row: expired
-- Scans    devices: no index leads to them, since a heartbeat must not touch one
-- Calls    is_silent for each row: looks its instances up by browser_instances_device_id_idx
-- Load     operators only
SELECT count(*) AS expired
FROM devices
WHERE is_silent(devices, %(seconds)s);
