-- Record heartbeats of devices, with metadata that changed. A retry moves last_heartbeat only forward.
--
-- rows  json  array of objects; fields and types are those of `input`; ordinal from 0; a field that is null is absent.
--             key_thumbprint is the token's, for a device whose row was deleted. observed_at: when the metadata was
--             observed; null: now
--
-- Returns  a row for each input row: ordinal, outcome (created | updated | null: refused, select_refusals tells, or the
--          batch has another token for the device), last_heartbeat
-- Fails    by devices_key_thumbprint_key when a device's row was deleted and another device has its key
-- Index    devices_pkey
-- Calls    is_outdated for each metadata field: whether it was observed before the stored one
-- Locks    the devices' rows, in key order
-- Load     one call a group commit, 1 to 1,000 rows; HOT, since no indexed column changes
WITH input AS (
    SELECT
        r.*,
        least(coalesce(to_timestamp(r.observed_at / 1000.0), now()), now()) AS seen_at
    FROM json_to_recordset(%(rows)s::json) AS r (
        ordinal int, device_id text, key_thumbprint text, hostname text, macs json, ips json, os jsonb, browsers jsonb,
        observed_at bigint
    )
),

-- A batch may name a device more than once: of each field the value that was observed last counts.
merged AS (
    SELECT
        device_id,
        key_thumbprint,
        min(ordinal) AS ordinal,
        row_number() OVER (PARTITION BY device_id ORDER BY min(ordinal)) AS occurrence,
        (array_agg(hostname ORDER BY seen_at DESC, ordinal DESC) FILTER (WHERE hostname IS NOT NULL))[1] AS hostname,
        max(seen_at) FILTER (WHERE hostname IS NOT NULL) AS hostname_at,
        (array_agg(macs ORDER BY seen_at DESC, ordinal DESC) FILTER (WHERE macs IS NOT NULL))[1] AS macs,
        max(seen_at) FILTER (WHERE macs IS NOT NULL) AS macs_at,
        (array_agg(ips ORDER BY seen_at DESC, ordinal DESC) FILTER (WHERE ips IS NOT NULL))[1] AS ips,
        max(seen_at) FILTER (WHERE ips IS NOT NULL) AS ips_at,
        (array_agg(os ORDER BY seen_at DESC, ordinal DESC) FILTER (WHERE os IS NOT NULL))[1] AS os,
        max(seen_at) FILTER (WHERE os IS NOT NULL) AS os_at,
        (array_agg(browsers ORDER BY seen_at DESC, ordinal DESC) FILTER (WHERE browsers IS NOT NULL))[1] AS browsers,
        max(seen_at) FILTER (WHERE browsers IS NOT NULL) AS browsers_at
    FROM input
    GROUP BY device_id, key_thumbprint
),

stored AS (
    INSERT INTO devices AS d (
        device_id, key_thumbprint, hostname, macs, ips, os, browsers, hostname_at, macs_at, ips_at, os_at, browsers_at,
        last_heartbeat
    )
    SELECT
        device_id,
        key_thumbprint,
        hostname,
        CASE WHEN macs IS NOT NULL THEN ARRAY(SELECT json_array_elements_text(macs)) END,
        CASE WHEN ips IS NOT NULL THEN ARRAY(SELECT json_array_elements_text(ips)) END,
        os,
        browsers,
        hostname_at,
        macs_at,
        ips_at,
        os_at,
        browsers_at,
        now()
    FROM merged
    WHERE occurrence = 1
    ORDER BY device_id
    ON CONFLICT (device_id) DO UPDATE SET
        last_heartbeat = greatest(d.last_heartbeat, excluded.last_heartbeat),
        archived_at = NULL,
        erased_at = NULL,
        -- An unchanged value keeps the stored one, so that a large one is not written again.
        hostname = CASE
            WHEN is_outdated(excluded.hostname_at, d.hostname_at) THEN d.hostname
            ELSE coalesce(nullif(excluded.hostname, d.hostname), d.hostname)
        END,
        hostname_at = greatest(d.hostname_at, excluded.hostname_at),
        macs = CASE
            WHEN is_outdated(excluded.macs_at, d.macs_at) THEN d.macs
            ELSE coalesce(nullif(excluded.macs, d.macs), d.macs)
        END,
        macs_at = greatest(d.macs_at, excluded.macs_at),
        ips = CASE
            WHEN is_outdated(excluded.ips_at, d.ips_at) THEN d.ips
            ELSE coalesce(nullif(excluded.ips, d.ips), d.ips)
        END,
        ips_at = greatest(d.ips_at, excluded.ips_at),
        os = CASE
            WHEN is_outdated(excluded.os_at, d.os_at) THEN d.os
            ELSE coalesce(nullif(excluded.os, d.os), d.os)
        END,
        os_at = greatest(d.os_at, excluded.os_at),
        browsers = CASE
            WHEN is_outdated(excluded.browsers_at, d.browsers_at) THEN d.browsers
            ELSE coalesce(nullif(excluded.browsers, d.browsers), d.browsers)
        END,
        browsers_at = greatest(d.browsers_at, excluded.browsers_at)
    WHERE d.revoked_at IS NULL AND d.key_thumbprint = excluded.key_thumbprint
    -- xmax is 0 in a row that was inserted and never locked.
    RETURNING d.device_id, d.key_thumbprint, d.last_heartbeat, d.xmax = 0 AS inserted
)

SELECT
    input.ordinal,
    CASE
        WHEN stored.device_id IS NULL THEN NULL
        WHEN stored.inserted AND input.ordinal = merged.ordinal THEN 'created'
        ELSE 'updated'
    END AS outcome,
    stored.last_heartbeat
FROM input
INNER JOIN merged ON input.device_id = merged.device_id AND input.key_thumbprint = merged.key_thumbprint
-- The planner expects few rows of `stored` and would run a left join as a nested loop, quadratic in the batch. A full
-- join is hashed or merged; `merged` has a row for each of `stored`, so the result is the same.
FULL JOIN stored ON merged.device_id = stored.device_id AND merged.key_thumbprint = stored.key_thumbprint;
