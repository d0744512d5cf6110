-- Compare extension status reports with the stored rows of the same keys. Changes nothing.
--
-- rows  json  array of objects, as insert_statuses takes them
--
-- Returns  a row for each input row whose key is stored: ordinal, created_at,
--          outcome (duplicate: same content | conflict: other content)
-- Index    extension_status_pkey
-- Load     repeats only, in the same group commit
WITH input AS (
    SELECT *
    FROM json_to_recordset(%(rows)s::json) AS r (
        ordinal int, reported_at bigint, device_id text, status_id uuid, instance_id text, status text,
        reported_by text, metadata jsonb
    )
    WHERE r.ordinal BETWEEN 0 AND 100000
)

SELECT
    input.ordinal,
    CASE
        -- Null-safe: two nulls are the same content.
        WHEN
            (input.instance_id IS NOT DISTINCT FROM extension_status.instance_id)
            AND (input.status IS NOT DISTINCT FROM extension_status.status)
            AND (input.reported_by IS NOT DISTINCT FROM extension_status.reported_by)
            AND (input.metadata IS NOT DISTINCT FROM extension_status.metadata)
            THEN 'duplicate'
        ELSE 'conflict'
    END AS outcome,
    extension_status.created_at
FROM input
INNER JOIN extension_status
    ON
        input.reported_at = extension_status.reported_at
        AND input.device_id = extension_status.device_id
        AND input.status_id = extension_status.status_id;
