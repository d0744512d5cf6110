-- Decide on claims to browser instances of other devices: move an instance whose owner is no more, else refuse. A retry
-- moves nothing twice; each refused pair of instance and device leaves one compliance event a day.
--
-- rows                  json     array of objects, as upsert_instances takes them
-- instances_per_device  integer  instances that a device may have
--
-- Returns  a row for each input row whose instance belongs to another device: ordinal,
--          outcome (instance_conflict | instance_limit | null: it was moved; upsert_instances stores it now)
-- Index    browser_instances_pkey, devices_pkey, browser_instances_device_id_idx, conflict_notices_pkey,
--          compliance_events_pkey
-- Locks    the rows of instances that it moves and of notices that it renews, each in key order
-- Load     conflicts only, in the same group commit
WITH input AS (
    SELECT
        r.ordinal,
        r.instance_id,
        r.device_id,
        coalesce(r.is_heartbeat, FALSE) AS is_heartbeat
    FROM json_to_recordset(%(rows)s::json) AS r (
        ordinal int, instance_id text, device_id text, is_heartbeat boolean
    )
    -- Always true. It lowers the row estimate: without it, a batch scans instances instead of using the index.
    WHERE r.ordinal BETWEEN 0 AND 100000
),

foreign_claims AS MATERIALIZED (
    SELECT
        input.*,
        browser_instances.device_id AS owner_id,
        browser_instances.released_at
    FROM input
    INNER JOIN browser_instances ON input.instance_id = browser_instances.instance_id
    WHERE browser_instances.device_id != input.device_id
),

-- Read apart: an outer join would fetch the whole table where it is distributed.
owners AS MATERIALIZED (
    SELECT
        foreign_claims.ordinal,
        devices.revoked_at,
        devices.archived_at,
        devices.erased_at
    FROM foreign_claims
    INNER JOIN devices ON foreign_claims.owner_id = devices.device_id
),

claimants AS MATERIALIZED (
    SELECT DISTINCT device_id
    FROM foreign_claims
    WHERE NOT is_heartbeat
),

counts AS MATERIALIZED (
    SELECT
        claimants.device_id,
        count(*) AS instances
    FROM claimants
    INNER JOIN browser_instances ON claimants.device_id = browser_instances.device_id
    GROUP BY claimants.device_id
),

-- Only a registration moves an instance. The planner expects one row and would run left joins as nested loops,
-- quadratic in the batch; full joins are hashed or merged.
claims AS (
    SELECT
        foreign_claims.*,
        coalesce(counts.instances, 0) AS instances,
        CASE
            WHEN foreign_claims.is_heartbeat THEN NULL
            WHEN foreign_claims.released_at IS NOT NULL THEN 'released'
            WHEN owners.ordinal IS NULL THEN 'device_gone'
            WHEN owners.revoked_at IS NOT NULL THEN 'device_revoked'
            WHEN owners.erased_at IS NOT NULL THEN 'device_erased'
            WHEN owners.archived_at IS NOT NULL THEN 'device_archived'
        END AS reason
    FROM foreign_claims
    FULL JOIN owners ON foreign_claims.ordinal = owners.ordinal
    FULL JOIN counts ON foreign_claims.device_id = counts.device_id
),

-- The first claim to an instance gets it. The others find its new owner when they are decided on again.
movable AS (
    SELECT
        claims.*,
        row_number() OVER (PARTITION BY instance_id ORDER BY ordinal) AS occurrence,
        instances + row_number() OVER (PARTITION BY device_id ORDER BY ordinal)
        > %(instances_per_device)s AS is_over_limit
    FROM claims
    WHERE reason IS NOT NULL
),

winners AS MATERIALIZED (
    SELECT *
    FROM movable
    WHERE occurrence = 1 AND NOT is_over_limit
    ORDER BY instance_id
),

moved AS (
    UPDATE browser_instances
    SET
        device_id = winners.device_id,
        released_at = NULL,
        browser_name_at = NULL,
        browser_version_at = NULL,
        profile_name_at = NULL,
        profile_path_at = NULL,
        extension_id_at = NULL,
        extension_version_at = NULL
    FROM winners
    WHERE
        browser_instances.instance_id = winners.instance_id
        AND browser_instances.device_id = winners.owner_id
    RETURNING winners.instance_id, winners.device_id, winners.owner_id, winners.reason
),

notices AS (
    INSERT INTO conflict_notices AS n (device_id, event_type, subject, noticed_on)
    SELECT DISTINCT
        owner_id,
        'browser_instance_conflict',
        instance_id || ' ' || device_id,
        (now() AT TIME ZONE 'UTC')::date
    FROM claims
    WHERE reason IS NULL
    ORDER BY owner_id, instance_id || ' ' || device_id
    ON CONFLICT (device_id, event_type, subject) DO UPDATE SET noticed_on = excluded.noticed_on
        WHERE n.noticed_on < excluded.noticed_on
    RETURNING n.device_id, split_part(n.subject, ' ', 1) AS instance_id, split_part(n.subject, ' ', 2) AS claimed_by
),

-- A conflict is the owner's event, a move the new owner's: the old one may be gone.
new_events AS (
    SELECT
        device_id,
        instance_id,
        'browser_instance_conflict' AS event_type,
        jsonb_build_object('instance_id', instance_id, 'device_id', claimed_by) AS details
    FROM notices
    UNION ALL
    SELECT
        device_id,
        instance_id,
        'browser_instance_moved',
        jsonb_build_object('instance_id', instance_id, 'from_device_id', owner_id, 'reason', reason)
    FROM moved
),

events AS (
    INSERT INTO compliance_events (detected_at, device_id, event_id, instance_id, event_type, severity, details)
    SELECT
        (extract(EPOCH FROM now()) * 1000)::bigint,
        device_id,
        md5(concat_ws(' ', event_type, device_id, details, now()))::uuid,
        instance_id,
        event_type,
        'medium',
        details
    FROM new_events
    ORDER BY device_id, event_type, instance_id
    ON CONFLICT DO NOTHING
)

SELECT
    claims.ordinal,
    CASE
        WHEN claims.reason IS NULL THEN 'instance_conflict'
        WHEN movable.occurrence = 1 AND movable.is_over_limit THEN 'instance_limit'
    END AS outcome
FROM claims
FULL JOIN movable ON claims.ordinal = movable.ordinal;
