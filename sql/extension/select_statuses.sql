-- Compare given extension status reports with the stored rows of the same keys.
--
-- rows  json  array of objects, as insert_statuses takes them
--
-- Returns  a row for each given row whose key is stored: ord, created_at,
--          outcome (duplicate: same content | conflict: other content)
-- Index    extension_status_pkey
-- Load     repeats only, in the same shared commit
WITH given AS (
    SELECT *
    FROM json_to_recordset(%(rows)s::json) AS r (
        ord int, reported_at bigint, device_id text, status_id uuid, instance_id text, status text, reported_by text,
        metadata jsonb
    )
    WHERE r.ord BETWEEN 0 AND 100000
)

SELECT
    given.ord,
    CASE
        -- Null-safe: two nulls are the same content.
        WHEN
            (given.instance_id IS NOT DISTINCT FROM extension_status.instance_id)
            AND (given.status IS NOT DISTINCT FROM extension_status.status)
            AND (given.reported_by IS NOT DISTINCT FROM extension_status.reported_by)
            AND (given.metadata IS NOT DISTINCT FROM extension_status.metadata)
            THEN 'duplicate'
        ELSE 'conflict'
    END AS outcome,
    extension_status.created_at
FROM given
INNER JOIN extension_status
    ON
        given.reported_at = extension_status.reported_at
        AND given.device_id = extension_status.device_id
        AND given.status_id = extension_status.status_id;
