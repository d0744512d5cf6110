-- Decide on registrations that were not stored: those in conflict with a stored device leave a compliance event for it,
-- one for each device, key and day. A retry records nothing new.
--
-- rows  json  array of objects, as register_devices takes them; event_id and detected_at are the event's
--
-- Returns  a row for each input row in conflict: ordinal, outcome (key_conflict)
-- Index    devices_pkey, devices_key_thumbprint_key, conflict_notices_pkey, compliance_events_pkey
-- Locks    the notices that it renews, in key order
-- Load     conflicts only, in the same group commit
WITH input AS (
    SELECT *
    FROM json_to_recordset(%(rows)s::json) AS r (
        ordinal int, enrollment_id uuid, device_id text, key_thumbprint text, hostname text, event_id uuid,
        detected_at bigint
    )
    -- Always true. It lowers the row estimate: without it, a batch scans devices instead of using the index.
    WHERE r.ordinal BETWEEN 0 AND 100000
),

same_device AS MATERIALIZED (
    SELECT
        input.ordinal,
        devices.device_id
    FROM input
    INNER JOIN devices ON input.device_id = devices.device_id
    WHERE devices.key_thumbprint != input.key_thumbprint
),

same_key AS MATERIALIZED (
    SELECT
        input.ordinal,
        devices.device_id
    FROM input
    INNER JOIN devices ON input.key_thumbprint = devices.key_thumbprint
    WHERE devices.device_id != input.device_id
),

-- The planner expects one row and would run left joins as nested loops, quadratic in the batch. Full joins are hashed
-- or merged; `input` has a row for each of theirs.
claims AS (
    SELECT
        input.*,
        coalesce(same_device.device_id, same_key.device_id) AS existing_device_id,
        row_number() OVER (
            PARTITION BY coalesce(same_device.device_id, same_key.device_id), input.key_thumbprint
            ORDER BY input.ordinal
        ) AS occurrence
    FROM input
    FULL JOIN same_device ON input.ordinal = same_device.ordinal
    FULL JOIN same_key ON input.ordinal = same_key.ordinal
),

notices AS (
    INSERT INTO conflict_notices AS n (device_id, event_type, subject, noticed_on)
    SELECT
        existing_device_id,
        'registration_conflict',
        key_thumbprint,
        (now() AT TIME ZONE 'UTC')::date
    FROM claims
    WHERE existing_device_id IS NOT NULL AND occurrence = 1
    ORDER BY existing_device_id, key_thumbprint
    ON CONFLICT (device_id, event_type, subject) DO UPDATE SET noticed_on = excluded.noticed_on
        WHERE n.noticed_on < excluded.noticed_on
    RETURNING n.device_id, n.subject
),

-- A clone or a takeover must be visible to whoever reads the existing device's events.
conflict_events AS (
    INSERT INTO compliance_events (detected_at, device_id, event_id, event_type, severity, details)
    SELECT
        detected_at,
        existing_device_id,
        event_id,
        'registration_conflict',
        'high',
        jsonb_build_object(
            'device_id', device_id,
            'key_thumbprint', key_thumbprint,
            'hostname', left(hostname, 256),
            'enrollment_id', enrollment_id
        )
    FROM claims
    -- IS TRUE keeps the lookup hashed: a join would be a nested loop, quadratic in the batch.
    WHERE
        occurrence = 1
        AND ((existing_device_id, key_thumbprint) IN (SELECT notices.device_id, notices.subject FROM notices)) IS TRUE
    ORDER BY detected_at, existing_device_id, event_id
    ON CONFLICT DO NOTHING
)

SELECT
    ordinal,
    'key_conflict' AS outcome
FROM claims
WHERE existing_device_id IS NOT NULL;
