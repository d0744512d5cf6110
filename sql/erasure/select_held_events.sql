-- Find out whether something of a person's is held, a page of the table at a time.
--
-- device_id     text    whose rows; or null: everybody's
-- username      text    whose rows; or null: everybody's
-- after_ms      bigint  the last row of the page before: its time,
-- after_device  text    its device
-- after_id      uuid    and its id
-- amount        integer rows a page
--
-- Returns  no row at the end of the table, else one: changed (rows of the page that are held), and the last row of the
--          page as after_ms, after_device, after_id
-- Index    compliance_events_pkey
-- Calls    is_held for each row of whom it is about: looks holds up by legal_holds_device_id_idx
-- Load     operators only, before an erasure, and only while there are holds
WITH page AS (
    SELECT
        detected_at AS at_ms,
        device_id,
        event_id
    FROM compliance_events
    WHERE
        detected_at >= %(after_ms)s
        AND (detected_at, device_id, event_id) > (%(after_ms)s, %(after_device)s, %(after_id)s)
    ORDER BY detected_at, device_id, event_id
    LIMIT %(amount)s
),

held AS (
    SELECT page.at_ms
    FROM page
    INNER JOIN compliance_events
        ON
            page.at_ms = compliance_events.detected_at
            AND page.device_id = compliance_events.device_id
            AND page.event_id = compliance_events.event_id
    WHERE
        compliance_events.erased_at IS NULL
        AND (
            %(device_id)s::text IS NULL
            OR compliance_events.device_id = %(device_id)s
            -- It claimed another device's key: that device's event has its host name.
            OR (
                compliance_events.event_type = 'registration_conflict'
                AND compliance_events.details @> jsonb_build_object('device_id', %(device_id)s::text)
            )
        )
        AND (
            %(username)s::text IS NULL
            -- The name itself, or something in it.
            OR jsonb_path_exists(
                jsonb_build_array(compliance_events.user_context, compliance_events.details),
                '$.** ? (@ == $name)',
                jsonb_build_object('name', %(username)s::text)
            )
        )
        AND is_held(compliance_events.device_id, compliance_events.detected_at)
)

SELECT
    (SELECT count(*) FROM held) AS changed,
    page.at_ms AS after_ms,
    page.device_id AS after_device,
    page.event_id AS after_id
FROM page
ORDER BY page.at_ms DESC, page.device_id DESC, page.event_id DESC
LIMIT 1;
