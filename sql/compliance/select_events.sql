-- Compare compliance events with the stored rows of the same keys: the duplicate check. Changes nothing.
--
-- rows  json  array of objects, as insert_events takes them
--
-- Returns  a row for each input row whose key is stored: ordinal, created_at,
--          outcome (duplicate: same content | conflict: other content)
-- Index    compliance_events_pkey
-- Load     repeats only, in the same group commit
SELECT
    (input.item ->> 'ordinal')::int AS ordinal,
    CASE
        -- All columns but those that the database sets itself, so that a new column is compared too.
        WHEN
            to_jsonb(reported.*) - '{created_at, erased_at}'::text[]
            = to_jsonb(stored.*) - '{created_at, erased_at}'::text[]
            THEN 'duplicate'
        ELSE 'conflict'
    END AS outcome,
    stored.created_at
FROM json_array_elements(%(rows)s::json) AS input (item)
CROSS JOIN LATERAL json_populate_record(NULL::compliance_events, input.item) AS reported
INNER JOIN compliance_events AS stored
    ON
        reported.detected_at = stored.detected_at
        AND reported.device_id = stored.device_id
        AND reported.event_id = stored.event_id;
