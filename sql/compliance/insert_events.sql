-- Record compliance events. A retry stores nothing new: its row comes back without an outcome.
--
-- rows  json  array of objects; fields and types are those of `given`; ord counts from 0
--
-- Returns  a row for each given row whose device is known: ord, created_at,
--          outcome (created | device_revoked | null: the key was there before, or twice in the set; select_events
--          tells)
-- Index    devices_pkey, browser_instances_pkey, compliance_events_pkey
-- Locks    the new rows, in key order; of devices and instances without a heartbeat for an hour their rows
-- Load     one call a shared commit, 1 to 1,000 rows
WITH given AS (
    SELECT *
    FROM json_to_recordset(%(rows)s::json) AS r (
        ord int, detected_at bigint, device_id text, event_id uuid, instance_id text, event_type text, severity text,
        user_context jsonb, details jsonb
    )
    -- True of every row. The planner takes it for a sign of few, and so looks devices up by key.
    WHERE r.ord BETWEEN 0 AND 100000
),

known AS (
    SELECT
        given.*,
        devices.revoked_at,
        devices.archived_at IS NOT NULL
        OR greatest(devices.last_heartbeat, devices.last_report) < now() - interval '1 hour' AS is_due,
        devices.instances_watched_at,
        row_number() OVER (
            PARTITION BY given.detected_at, given.device_id, given.event_id ORDER BY given.ord
        ) AS turn
    FROM given
    INNER JOIN devices ON given.device_id = devices.device_id
),

stored AS (
    INSERT INTO compliance_events (
        detected_at, device_id, event_id, instance_id, event_type, severity, user_context, details
    )
    SELECT
        detected_at, device_id, event_id, instance_id, event_type, severity, user_context, details
    FROM known
    WHERE revoked_at IS NULL AND turn = 1
    ORDER BY detected_at, device_id, event_id
    ON CONFLICT DO NOTHING
    RETURNING detected_at, device_id, event_id
),

-- A report is a sign of life: noted once an hour at most, while no heartbeat is. It brings back what was archived.
heard_devices AS (
    UPDATE devices
    SET
        last_report = now(),
        archived_at = NULL
    FROM (
        SELECT DISTINCT device_id
        FROM known
        WHERE is_due AND revoked_at IS NULL
        ORDER BY device_id
    ) AS due
    WHERE devices.device_id = due.device_id
),

heard_instances AS (
    UPDATE browser_instances
    SET
        last_report = now(),
        archived_at = NULL
    FROM (
        SELECT DISTINCT
            instance_id,
            device_id
        FROM known
        WHERE instances_watched_at IS NOT NULL AND revoked_at IS NULL
        ORDER BY instance_id
    ) AS named
    WHERE
        browser_instances.instance_id = named.instance_id
        -- Without the operator it would be looked up by its device, which may have hundreds.
        AND browser_instances.device_id || '' = named.device_id
        AND (
            browser_instances.archived_at IS NOT NULL
            OR greatest(browser_instances.last_seen, browser_instances.last_report) < now() - interval '1 hour'
        )
)

SELECT
    known.ord,
    CASE
        WHEN known.revoked_at IS NOT NULL THEN 'device_revoked'
        WHEN
            known.turn = 1
            AND (known.detected_at, known.device_id, known.event_id) IN (
                SELECT stored.detected_at, stored.device_id, stored.event_id FROM stored
            )
            THEN 'created'
    END AS outcome,
    now() AS created_at
FROM known;
