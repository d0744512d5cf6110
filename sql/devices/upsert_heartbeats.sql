-- Record heartbeats of devices, with metadata that changed. A retry moves last_heartbeat only forward.
--
-- rows  json  array of objects; fields and types are those of `input`; ordinal from 0; a field that is null is absent.
--             key_thumbprint is the token's, for a device whose row was deleted
--
-- Returns  a row for each input row: ordinal, outcome (created | updated | device_revoked), last_heartbeat
-- Fails    by devices_key_thumbprint_key when a device's row was deleted and another device has its key
-- Index    devices_pkey
-- Locks    the devices' rows, in key order
-- Load     one call a group commit, 1 to 1,000 rows; HOT, since no indexed column changes
WITH input AS (
    SELECT *
    FROM json_to_recordset(%(rows)s::json) AS r (
        ordinal int, device_id text, key_thumbprint text, hostname text, macs json, ips json, os jsonb, browsers jsonb
    )
),

-- A batch may name a device more than once: of each field the last value counts.
merged AS (
    SELECT
        device_id,
        min(ordinal) AS ordinal,
        min(key_thumbprint) AS key_thumbprint,
        (array_agg(hostname ORDER BY ordinal DESC) FILTER (WHERE hostname IS NOT NULL))[1] AS hostname,
        (array_agg(macs ORDER BY ordinal DESC) FILTER (WHERE macs IS NOT NULL))[1] AS macs,
        (array_agg(ips ORDER BY ordinal DESC) FILTER (WHERE ips IS NOT NULL))[1] AS ips,
        (array_agg(os ORDER BY ordinal DESC) FILTER (WHERE os IS NOT NULL))[1] AS os,
        (array_agg(browsers ORDER BY ordinal DESC) FILTER (WHERE browsers IS NOT NULL))[1] AS browsers
    FROM input
    GROUP BY device_id
),

stored AS (
    INSERT INTO devices AS d (device_id, key_thumbprint, hostname, macs, ips, os, browsers, last_heartbeat)
    SELECT
        device_id,
        key_thumbprint,
        hostname,
        CASE WHEN macs IS NOT NULL THEN ARRAY(SELECT json_array_elements_text(macs)) END,
        CASE WHEN ips IS NOT NULL THEN ARRAY(SELECT json_array_elements_text(ips)) END,
        os,
        browsers,
        now()
    FROM merged
    ORDER BY device_id
    ON CONFLICT (device_id) DO UPDATE SET
        last_heartbeat = greatest(d.last_heartbeat, excluded.last_heartbeat),
        archived_at = NULL,
        -- An unchanged value keeps the stored one, so that a large one is not written again.
        hostname = coalesce(nullif(excluded.hostname, d.hostname), d.hostname),
        macs = coalesce(nullif(excluded.macs, d.macs), d.macs),
        ips = coalesce(nullif(excluded.ips, d.ips), d.ips),
        os = coalesce(nullif(excluded.os, d.os), d.os),
        browsers = coalesce(nullif(excluded.browsers, d.browsers), d.browsers)
    WHERE d.revoked_at IS NULL
    -- xmax is 0 in a row that was inserted and never locked.
    RETURNING d.device_id, d.last_heartbeat, d.xmax = 0 AS inserted
)

SELECT
    input.ordinal,
    CASE
        WHEN stored.device_id IS NULL THEN 'device_revoked'
        WHEN stored.inserted AND input.ordinal = merged.ordinal THEN 'created'
        ELSE 'updated'
    END AS outcome,
    stored.last_heartbeat
FROM input
INNER JOIN merged ON input.device_id = merged.device_id
LEFT JOIN stored ON input.device_id = stored.device_id;
