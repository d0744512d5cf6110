-- Record compliance events. A retry stores nothing new: its row comes back without an outcome.
--
-- rows  json  array of objects; fields and types are those of `input`; ordinal from 0. notes_instance: the worker has
--             not heard of the row's instance lately, so it is noted as a sign of life
--
-- Returns  a row for each input row whose device is known: ordinal, created_at,
--          outcome (created | device_revoked | key_replaced: the token is for another key than the device's |
--          null: the row's key was there before, or twice in the batch; select_events tells)
-- Index    devices_pkey, browser_instances_pkey, compliance_events_pkey
-- Locks    the new rows, in key order; rows of devices and instances without a heartbeat for an hour
-- Load     one call a group commit, 1 to 1,000 rows
WITH input AS (
    SELECT *
    FROM json_to_recordset(%(rows)s::json) AS r (
        ordinal int, detected_at bigint, device_id text, key_thumbprint text, event_id uuid, instance_id text,
        event_type text, severity text, user_context jsonb, details jsonb, notes_instance boolean
    )
    -- Always true. It lowers the row estimate: without it, a batch scans devices instead of using the index.
    WHERE r.ordinal BETWEEN 0 AND 100000
),

known AS (
    SELECT
        input.*,
        devices.revoked_at,
        (devices.key_thumbprint IS DISTINCT FROM input.key_thumbprint) AS is_replaced,
        devices.archived_at IS NOT NULL
        OR greatest(devices.last_heartbeat, devices.last_report) < now() - interval '1 hour' AS is_due,
        row_number() OVER (
            PARTITION BY input.detected_at, input.device_id, input.event_id ORDER BY input.ordinal
        ) AS occurrence
    FROM input
    INNER JOIN devices ON input.device_id = devices.device_id
),

stored AS (
    INSERT INTO compliance_events (
        detected_at, device_id, event_id, instance_id, event_type, severity, user_context, details
    )
    SELECT
        detected_at, device_id, event_id, instance_id, event_type, severity, user_context, details
    FROM known
    WHERE revoked_at IS NULL AND NOT is_replaced AND occurrence = 1
    ORDER BY detected_at, device_id, event_id
    ON CONFLICT DO NOTHING
    RETURNING detected_at, device_id, event_id
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
        FROM known
        WHERE is_due AND revoked_at IS NULL AND NOT is_replaced
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
        WHERE notes_instance AND revoked_at IS NULL AND NOT is_replaced
        ORDER BY instance_id
    ) AS named
    WHERE
        browser_instances.instance_id = named.instance_id
        -- Without the operator, the index on device_id would be used, and a device may have hundreds of instances.
        AND browser_instances.device_id || '' = named.device_id
        AND (
            browser_instances.archived_at IS NOT NULL
            OR greatest(browser_instances.last_seen, browser_instances.last_report) < now() - interval '1 hour'
        )
)

SELECT
    known.ordinal,
    CASE
        WHEN known.revoked_at IS NOT NULL THEN 'device_revoked'
        WHEN known.is_replaced THEN 'key_replaced'
        WHEN
            known.occurrence = 1
            AND (known.detected_at, known.device_id, known.event_id) IN (
                SELECT stored.detected_at, stored.device_id, stored.event_id FROM stored
            )
            THEN 'created'
    END AS outcome,
    now() AS created_at
FROM known;
