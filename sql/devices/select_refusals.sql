-- Tell why heartbeats of devices were refused. Changes nothing.
--
-- rows  json  array of objects, as upsert_heartbeats takes them
--
-- Returns  a row for each input row that is refused: ordinal,
--          outcome (device_revoked | key_replaced: the token is for another key than the device's)
-- Index    devices_pkey
-- Load     refusals only, in the same group commit
WITH input AS (
    SELECT *
    FROM json_to_recordset(%(rows)s::json) AS r (ordinal int, device_id text, key_thumbprint text)
    -- Always true. It lowers the row estimate: without it, a batch scans devices instead of using the index.
    WHERE r.ordinal BETWEEN 0 AND 100000
)

SELECT
    input.ordinal,
    CASE WHEN devices.revoked_at IS NOT NULL THEN 'device_revoked' ELSE 'key_replaced' END AS outcome
FROM input
INNER JOIN devices ON input.device_id = devices.device_id
WHERE devices.revoked_at IS NOT NULL OR devices.key_thumbprint IS DISTINCT FROM input.key_thumbprint;
