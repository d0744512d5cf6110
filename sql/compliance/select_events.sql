-- Compare compliance events with the stored rows of the same keys. Changes nothing.
--
-- rows  json  array of objects, as insert_events takes them
--
-- Returns  a row for each input row whose key is stored: ordinal, created_at,
--          outcome (duplicate: same content | conflict: other content)
-- Index    compliance_events_pkey
-- Load     repeats only, in the same group commit
WITH input AS (
    SELECT *
    FROM json_to_recordset(%(rows)s::json) AS r (
        ordinal int, detected_at bigint, device_id text, event_id uuid, instance_id text, event_type text,
        severity text, user_context jsonb, details jsonb
    )
    WHERE r.ordinal BETWEEN 0 AND 100000
)

SELECT
    input.ordinal,
    CASE
        -- Null-safe: two nulls are the same content.
        WHEN
            (input.instance_id IS NOT DISTINCT FROM compliance_events.instance_id)
            AND (input.event_type IS NOT DISTINCT FROM compliance_events.event_type)
            AND (input.severity IS NOT DISTINCT FROM compliance_events.severity)
            AND (input.user_context IS NOT DISTINCT FROM compliance_events.user_context)
            AND (input.details IS NOT DISTINCT FROM compliance_events.details)
            THEN 'duplicate'
        ELSE 'conflict'
    END AS outcome,
    compliance_events.created_at
FROM input
INNER JOIN compliance_events
    ON
        input.detected_at = compliance_events.detected_at
        AND input.device_id = compliance_events.device_id
        AND input.event_id = compliance_events.event_id;
