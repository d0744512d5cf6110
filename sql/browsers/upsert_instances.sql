-- Register browser instances or record their heartbeats, with metadata. A retry moves last_seen (of a heartbeat) and
-- last_report (of a registration) only forward, and changes nothing else.
--
-- rows                  json     array of objects; fields and types are those of `input`; ordinal from 0; a field that
--                                is null is absent. is_heartbeat: set last_seen; the same in all rows. observed_at:
--                                when the metadata was observed; null: now
-- instances_per_device  integer  instances that a device may have; each concurrent batch of one device may add so many
--
-- Returns  a row for each input row whose device exists: ordinal, discovered_at, created_at, last_seen,
--          outcome (created | updated | device_revoked | key_replaced: the token is for another key than the device's |
--          instance_limit: the device has as many as it may | null: the instance belongs to another device;
--          settle_claims decides)
-- Index    devices_pkey, browser_instances_pkey, browser_instances_device_id_idx
-- Calls    is_outdated for each metadata field: whether it was observed before the stored one
-- Locks    the instances' rows that belong to the row's own device, in key order; a refused row locks none; rows of
--          devices without a heartbeat for an hour
-- Load     one call a group commit, 1 to 1,000 rows; HOT, since no indexed column changes
WITH input AS (
    SELECT
        r.*,
        least(coalesce(to_timestamp(r.observed_at / 1000.0), now()), now()) AS seen_at
    FROM json_to_recordset(%(rows)s::json) AS r (
        ordinal int, instance_id text, device_id text, key_thumbprint text, is_heartbeat boolean, browser_name text,
        browser_version text, profile_name text, profile_path text, extension_id text, extension_version text,
        discovered_at bigint, observed_at bigint
    )
    -- Always true. It lowers the row estimate: without it, a batch scans devices instead of using the index.
    WHERE r.ordinal BETWEEN 0 AND 100000
),

-- Whose the instances are is read, not locked.
claims AS (
    SELECT
        input.*,
        CASE
            WHEN devices.revoked_at IS NOT NULL THEN 'device_revoked'
            WHEN (devices.key_thumbprint IS DISTINCT FROM input.key_thumbprint) THEN 'key_replaced'
            WHEN owners.device_id IS NULL THEN 'new'
            WHEN owners.device_id = input.device_id THEN 'own'
            ELSE 'foreign'
        END AS verdict,
        devices.archived_at IS NOT NULL
        OR greatest(devices.last_heartbeat, devices.last_report) < now() - interval '1 hour' AS is_due
    FROM input
    INNER JOIN devices ON input.device_id = devices.device_id
    CROSS JOIN LATERAL (
        SELECT max(browser_instances.device_id) AS device_id
        FROM browser_instances
        WHERE browser_instances.instance_id = input.instance_id
    ) AS owners
),

-- A report is a sign of life, recorded at most once an hour and only while no heartbeat comes. It brings back what was
-- archived.
heard_devices AS (
    UPDATE devices
    SET
        last_report = now(),
        archived_at = NULL
    FROM (
        SELECT DISTINCT device_id
        FROM claims
        WHERE is_due AND verdict NOT IN ('device_revoked', 'key_replaced')
        ORDER BY device_id
    ) AS due
    WHERE devices.device_id = due.device_id
),

-- A batch may name an instance more than once: of each field the value that was observed last counts.
merged AS (
    SELECT
        instance_id,
        device_id,
        verdict,
        min(ordinal) AS ordinal,
        row_number() OVER (PARTITION BY instance_id ORDER BY min(ordinal)) AS occurrence,
        (
            array_agg(browser_name ORDER BY seen_at DESC, ordinal DESC)
            FILTER (WHERE browser_name IS NOT NULL)
        )[1] AS browser_name,
        max(seen_at) FILTER (WHERE browser_name IS NOT NULL) AS browser_name_at,
        (
            array_agg(browser_version ORDER BY seen_at DESC, ordinal DESC)
            FILTER (WHERE browser_version IS NOT NULL)
        )[1] AS browser_version,
        max(seen_at) FILTER (WHERE browser_version IS NOT NULL) AS browser_version_at,
        (
            array_agg(profile_name ORDER BY seen_at DESC, ordinal DESC)
            FILTER (WHERE profile_name IS NOT NULL)
        )[1] AS profile_name,
        max(seen_at) FILTER (WHERE profile_name IS NOT NULL) AS profile_name_at,
        (
            array_agg(profile_path ORDER BY seen_at DESC, ordinal DESC)
            FILTER (WHERE profile_path IS NOT NULL)
        )[1] AS profile_path,
        max(seen_at) FILTER (WHERE profile_path IS NOT NULL) AS profile_path_at,
        (
            array_agg(extension_id ORDER BY seen_at DESC, ordinal DESC)
            FILTER (WHERE extension_id IS NOT NULL)
        )[1] AS extension_id,
        max(seen_at) FILTER (WHERE extension_id IS NOT NULL) AS extension_id_at,
        (
            array_agg(extension_version ORDER BY seen_at DESC, ordinal DESC)
            FILTER (WHERE extension_version IS NOT NULL)
        )[1] AS extension_version,
        max(seen_at) FILTER (WHERE extension_version IS NOT NULL) AS extension_version_at,
        min(discovered_at) AS discovered_at,
        CASE WHEN bool_or(is_heartbeat) THEN now() END AS last_seen
    FROM claims
    WHERE verdict IN ('new', 'own')
    GROUP BY instance_id, device_id, verdict
),

-- From here on to `admissions` nothing runs in a batch without new instances.
newcomers AS (
    SELECT
        instance_id,
        device_id,
        row_number() OVER (PARTITION BY device_id ORDER BY min(ordinal)) AS place
    FROM claims
    WHERE verdict = 'new'
    GROUP BY instance_id, device_id
),

counts AS MATERIALIZED (
    SELECT
        newcomers.device_id,
        count(*) AS instances
    FROM newcomers
    INNER JOIN browser_instances ON newcomers.device_id = browser_instances.device_id
    WHERE newcomers.place = 1
    GROUP BY newcomers.device_id
),

-- The planner expects one row and would run inner or left joins, here and below, as nested loops, quadratic in the
-- batch. Full joins are hashed or merged; the left side has a row for each of the right, so the result is the same.
admissions AS MATERIALIZED (
    SELECT
        newcomers.instance_id,
        newcomers.device_id,
        coalesce(counts.instances, 0) + newcomers.place <= %(instances_per_device)s AS is_admitted
    FROM newcomers
    FULL JOIN counts ON newcomers.device_id = counts.device_id
),

stored AS (
    INSERT INTO browser_instances AS b (
        instance_id, device_id, browser_name, browser_name_at, browser_version, browser_version_at, profile_name,
        profile_name_at, profile_path, profile_path_at, extension_id, extension_id_at, extension_version,
        extension_version_at, discovered_at, last_seen
    )
    SELECT
        instance_id, device_id, browser_name, browser_name_at, browser_version, browser_version_at, profile_name,
        profile_name_at, profile_path, profile_path_at, extension_id, extension_id_at, extension_version,
        extension_version_at, discovered_at, last_seen
    FROM merged
    WHERE
        occurrence = 1
        AND (
            verdict = 'own'
            OR (instance_id, device_id) IN (
                SELECT
                    admissions.instance_id,
                    admissions.device_id
                FROM admissions
                WHERE admissions.is_admitted
            )
        )
    ORDER BY instance_id
    ON CONFLICT (instance_id) DO UPDATE SET
        last_seen = greatest(b.last_seen, excluded.last_seen),
        last_report = CASE WHEN excluded.last_seen IS NULL THEN excluded.last_report ELSE b.last_report END,
        archived_at = NULL,
        -- A registration ends a release, a heartbeat does not.
        released_at = CASE WHEN excluded.last_seen IS NOT NULL THEN b.released_at END,
        discovered_at = least(b.discovered_at, excluded.discovered_at),
        browser_name = CASE
            WHEN is_outdated(excluded.browser_name_at, b.browser_name_at) THEN b.browser_name
            ELSE coalesce(excluded.browser_name, b.browser_name)
        END,
        browser_name_at = greatest(b.browser_name_at, excluded.browser_name_at),
        browser_version = CASE
            WHEN is_outdated(excluded.browser_version_at, b.browser_version_at) THEN b.browser_version
            ELSE coalesce(excluded.browser_version, b.browser_version)
        END,
        browser_version_at = greatest(b.browser_version_at, excluded.browser_version_at),
        profile_name = CASE
            WHEN is_outdated(excluded.profile_name_at, b.profile_name_at) THEN b.profile_name
            ELSE coalesce(excluded.profile_name, b.profile_name)
        END,
        profile_name_at = greatest(b.profile_name_at, excluded.profile_name_at),
        profile_path = CASE
            WHEN is_outdated(excluded.profile_path_at, b.profile_path_at) THEN b.profile_path
            ELSE coalesce(excluded.profile_path, b.profile_path)
        END,
        profile_path_at = greatest(b.profile_path_at, excluded.profile_path_at),
        extension_id = CASE
            WHEN is_outdated(excluded.extension_id_at, b.extension_id_at) THEN b.extension_id
            ELSE coalesce(excluded.extension_id, b.extension_id)
        END,
        extension_id_at = greatest(b.extension_id_at, excluded.extension_id_at),
        extension_version = CASE
            WHEN is_outdated(excluded.extension_version_at, b.extension_version_at) THEN b.extension_version
            ELSE coalesce(excluded.extension_version, b.extension_version)
        END,
        extension_version_at = greatest(b.extension_version_at, excluded.extension_version_at)
    WHERE b.device_id = excluded.device_id
    -- xmax is 0 in a row that was inserted and never locked.
    RETURNING b.instance_id, b.discovered_at, b.created_at, b.last_seen, b.xmax = 0 AS inserted
)

SELECT
    claims.ordinal,
    CASE
        WHEN claims.verdict IN ('device_revoked', 'key_replaced') THEN claims.verdict
        WHEN stored.inserted AND merged.occurrence = 1 AND claims.ordinal = merged.ordinal THEN 'created'
        WHEN stored.instance_id IS NOT NULL AND merged.occurrence = 1 THEN 'updated'
        WHEN
            (claims.instance_id, claims.device_id) IN (
                SELECT
                    admissions.instance_id,
                    admissions.device_id
                FROM admissions
                WHERE NOT admissions.is_admitted
            )
            THEN 'instance_limit'
    END AS outcome,
    stored.discovered_at,
    stored.created_at,
    stored.last_seen
FROM claims
FULL JOIN merged ON claims.instance_id = merged.instance_id AND claims.device_id = merged.device_id
FULL JOIN stored ON merged.instance_id = stored.instance_id;
