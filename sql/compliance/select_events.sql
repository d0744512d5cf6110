-- Compare given compliance events with the stored rows of the same keys.
--
-- rows  json  array of objects, as insert_events takes them
--
-- Returns  a row for each given row whose key is stored: ord, created_at,
--          outcome (duplicate: same content | conflict: other content)
-- Index    compliance_events_pkey
-- Load     repeats only, in the same shared commit
WITH given AS (
    SELECT *
    FROM json_to_recordset(%(rows)s::json) AS r (
        ord int, detected_at bigint, device_id text, event_id uuid, instance_id text, event_type text, severity text,
        user_context jsonb, details jsonb
    )
    WHERE r.ord BETWEEN 0 AND 100000
)

SELECT
    given.ord,
    CASE
        -- Null-safe: two nulls are the same content.
        WHEN
            (given.instance_id IS NOT DISTINCT FROM compliance_events.instance_id)
            AND (given.event_type IS NOT DISTINCT FROM compliance_events.event_type)
            AND (given.severity IS NOT DISTINCT FROM compliance_events.severity)
            AND (given.user_context IS NOT DISTINCT FROM compliance_events.user_context)
            AND (given.details IS NOT DISTINCT FROM compliance_events.details)
            THEN 'duplicate'
        ELSE 'conflict'
    END AS outcome,
    compliance_events.created_at
FROM given
INNER JOIN compliance_events
    ON
        given.detected_at = compliance_events.detected_at
        AND given.device_id = compliance_events.device_id
        AND given.event_id = compliance_events.event_id;
