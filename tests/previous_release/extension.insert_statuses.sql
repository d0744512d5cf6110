-- Record reports of whether the extension is on. A retry stores nothing new: its row comes back without an outcome.
--
-- rows  json  array of objects; fields and types are those of `given`; ord counts from 0
--
-- Returns  a row for each given row whose device is known: ord, created_at,
--          outcome (created | device_revoked | null: the key was there before, or twice in the set; select_statuses
--          tells)
-- Index    devices_pkey, extension_status_pkey
-- Locks    the new rows only, in key order
-- Load     one call a shared commit, 1 to 1,000 rows
WITH given AS (
    SELECT *
    FROM json_to_recordset(%(rows)s::json) AS r (
        ord int, reported_at bigint, device_id text, status_id uuid, instance_id text, status text, reported_by text,
        metadata jsonb
    )
    -- True of every row. The planner takes it for a sign of few, and so looks devices up by key.
    WHERE r.ord BETWEEN 0 AND 100000
),

known AS (
    SELECT
        given.*,
        devices.revoked_at,
        row_number() OVER (
            PARTITION BY given.reported_at, given.device_id, given.status_id ORDER BY given.ord
        ) AS turn
    FROM given
    INNER JOIN devices ON given.device_id = devices.device_id
),

stored AS (
    INSERT INTO extension_status (reported_at, device_id, status_id, instance_id, status, reported_by, metadata)
    SELECT
        reported_at, device_id, status_id, instance_id, status, reported_by, metadata
    FROM known
    WHERE revoked_at IS NULL AND turn = 1
    ORDER BY reported_at, device_id, status_id
    ON CONFLICT DO NOTHING
    RETURNING reported_at, device_id, status_id
)

SELECT
    known.ord,
    CASE
        WHEN known.revoked_at IS NOT NULL THEN 'device_revoked'
        WHEN
            known.turn = 1
            AND (known.reported_at, known.device_id, known.status_id) IN (
                SELECT stored.reported_at, stored.device_id, stored.status_id FROM stored
            )
            THEN 'created'
    END AS outcome,
    now() AS created_at
FROM known;
