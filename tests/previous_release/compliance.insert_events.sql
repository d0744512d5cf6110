-- Record compliance events. A retry stores nothing new: its row comes back without an outcome.
--
-- rows  json  array of objects; fields and types are those of `given`; ord counts from 0
--
-- Returns  a row for each given row whose device is known: ord, created_at,
--          outcome (created | device_revoked | null: the key was there before, or twice in the set; select_events
--          tells)
-- Index    devices_pkey, compliance_events_pkey
-- Locks    the new rows only, in key order
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
