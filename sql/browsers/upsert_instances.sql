-- Register browser instances, or update their metadata. A retry changes nothing more.
--
-- rows  json  array of objects; fields and types are those of `input`; ordinal from 0; a field that is null is absent
--
-- Returns  a row for each input row whose device is known: ordinal, discovered_at, created_at, last_seen,
--          outcome (created | updated | device_revoked | instance_conflict: it belongs to another device |
--          null: another device in the batch claims the same instance and was refused; select_owners tells)
-- Index    devices_pkey, browser_instances_pkey
-- Locks    the instances' rows, in key order
-- Load     one call a group commit, 1 to 1,000 rows
WITH input AS (
    SELECT *
    FROM json_to_recordset(%(rows)s::json) AS r (
        ordinal int, instance_id text, device_id text, browser_name text, browser_version text, profile_name text,
        profile_path text, extension_id text, extension_version text, discovered_at bigint
    )
    -- Always true. It lowers the row estimate: without it, a batch scans devices instead of using the index.
    WHERE r.ordinal BETWEEN 0 AND 100000
),

known AS (
    SELECT
        input.*,
        devices.revoked_at
    FROM input
    INNER JOIN devices ON input.device_id = devices.device_id
),

-- A batch may name an instance more than once: of each field the last value counts.
merged AS (
    SELECT
        instance_id,
        device_id,
        min(ordinal) AS ordinal,
        row_number() OVER (PARTITION BY instance_id ORDER BY min(ordinal)) AS occurrence,
        (array_agg(browser_name ORDER BY ordinal DESC) FILTER (WHERE browser_name IS NOT NULL))[1] AS browser_name,
        (
            array_agg(browser_version ORDER BY ordinal DESC) FILTER (WHERE browser_version IS NOT NULL)
        )[1] AS browser_version,
        (array_agg(profile_name ORDER BY ordinal DESC) FILTER (WHERE profile_name IS NOT NULL))[1] AS profile_name,
        (array_agg(profile_path ORDER BY ordinal DESC) FILTER (WHERE profile_path IS NOT NULL))[1] AS profile_path,
        (array_agg(extension_id ORDER BY ordinal DESC) FILTER (WHERE extension_id IS NOT NULL))[1] AS extension_id,
        (
            array_agg(extension_version ORDER BY ordinal DESC) FILTER (WHERE extension_version IS NOT NULL)
        )[1] AS extension_version,
        (array_agg(discovered_at ORDER BY ordinal DESC) FILTER (WHERE discovered_at IS NOT NULL))[1] AS discovered_at
    FROM known
    WHERE revoked_at IS NULL
    GROUP BY instance_id, device_id
),

stored AS (
    INSERT INTO browser_instances AS b (
        instance_id, device_id, browser_name, browser_version, profile_name, profile_path, extension_id,
        extension_version, discovered_at
    )
    SELECT
        instance_id, device_id, browser_name, browser_version, profile_name, profile_path, extension_id,
        extension_version, discovered_at
    FROM merged
    WHERE occurrence = 1
    ORDER BY instance_id
    ON CONFLICT (instance_id) DO UPDATE SET
        browser_name = coalesce(excluded.browser_name, b.browser_name),
        browser_version = coalesce(excluded.browser_version, b.browser_version),
        profile_name = coalesce(excluded.profile_name, b.profile_name),
        profile_path = coalesce(excluded.profile_path, b.profile_path),
        extension_id = coalesce(excluded.extension_id, b.extension_id),
        extension_version = coalesce(excluded.extension_version, b.extension_version),
        discovered_at = coalesce(excluded.discovered_at, b.discovered_at),
        archived_at = NULL
    WHERE b.device_id = excluded.device_id
    -- xmax is 0 in a row that was inserted and never locked.
    RETURNING b.instance_id, b.discovered_at, b.created_at, b.last_seen, b.xmax = 0 AS inserted
)

SELECT
    known.ordinal,
    CASE
        WHEN known.revoked_at IS NOT NULL THEN 'device_revoked'
        WHEN merged.occurrence > 1 AND stored.instance_id IS NULL THEN NULL
        WHEN merged.occurrence > 1 OR stored.instance_id IS NULL THEN 'instance_conflict'
        WHEN stored.inserted AND known.ordinal = merged.ordinal THEN 'created'
        ELSE 'updated'
    END AS outcome,
    stored.discovered_at,
    stored.created_at,
    stored.last_seen
FROM known
-- The planner expects one row and would run a left join as a nested loop, quadratic in the batch. Full joins are hashed
-- or merged; `known` has a row for each of theirs, so the result is the same.
FULL JOIN merged ON known.instance_id = merged.instance_id AND known.device_id = merged.device_id
FULL JOIN stored ON merged.instance_id = stored.instance_id;
