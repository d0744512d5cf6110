-- Note that devices are alive, with the metadata that changed. A retry moves last_heartbeat only forward.
--
-- rows  json  array of objects; fields and types are those of `given`; ord counts from 0; a field that is null was not
--             given. key_thumbprint is the token's, for a device whose row is gone
--
-- Returns  a row for each given row: ord, outcome (created | updated | device_revoked), last_heartbeat
-- Fails    by devices_key_thumbprint_key when a device's row is gone and another device has its key by now
-- Index    devices_pkey
-- Locks    the devices' rows, in key order
-- Load     one call a shared commit, 1 to 1,000 rows; HOT, since no indexed column changes
WITH given AS (
    SELECT *
    FROM json_to_recordset(%(rows)s::json) AS r (
        ord int, device_id text, key_thumbprint text, hostname text, macs json, ips json, os jsonb, browsers jsonb
    )
),

-- A set may name a device more than once: of each field the last that was given counts.
merged AS (
    SELECT
        device_id,
        min(ord) AS ord,
        min(key_thumbprint) AS key_thumbprint,
        (array_agg(hostname ORDER BY ord DESC) FILTER (WHERE hostname IS NOT NULL))[1] AS hostname,
        (array_agg(macs ORDER BY ord DESC) FILTER (WHERE macs IS NOT NULL))[1] AS macs,
        (array_agg(ips ORDER BY ord DESC) FILTER (WHERE ips IS NOT NULL))[1] AS ips,
        (array_agg(os ORDER BY ord DESC) FILTER (WHERE os IS NOT NULL))[1] AS os,
        (array_agg(browsers ORDER BY ord DESC) FILTER (WHERE browsers IS NOT NULL))[1] AS browsers
    FROM given
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
        -- What is given but unchanged keeps the stored value, so that a large one is not written again.
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
    given.ord,
    CASE
        WHEN stored.device_id IS NULL THEN 'device_revoked'
        WHEN stored.inserted AND given.ord = merged.ord THEN 'created'
        ELSE 'updated'
    END AS outcome,
    stored.last_heartbeat
FROM given
INNER JOIN merged ON given.device_id = merged.device_id
LEFT JOIN stored ON given.device_id = stored.device_id;
