-- Delete expired events, a page of the table at a time, oldest first; what is held stays. A repeat goes on where the
-- last one stopped.
--
-- before_ms     bigint  older ones have expired, epoch milliseconds
-- after_ms      bigint  the last row of the page before: its time,
-- after_device  text    its device
-- after_id      uuid    and its id
-- amount        integer rows a page
--
-- Returns  no row when nothing older is left, else one: changed (rows deleted), and the last row of the page as
--          after_ms, after_device, after_id
-- Index    compliance_events_pkey
-- Calls    is_held for each row of the page: looks holds up by legal_holds_device_id_idx
-- Locks    the rows that it deletes
-- Load     operators only, a transaction a page
WITH page AS (
    SELECT
        detected_at AS at_ms,
        device_id,
        event_id
    FROM compliance_events
    WHERE
        detected_at < %(before_ms)s
        AND detected_at >= %(after_ms)s
        AND (detected_at, device_id, event_id) > (%(after_ms)s, %(after_device)s, %(after_id)s)
    ORDER BY detected_at, device_id, event_id
    LIMIT %(amount)s
),

gone AS (
    DELETE FROM compliance_events
    USING page
    WHERE
        compliance_events.detected_at = page.at_ms
        AND compliance_events.device_id = page.device_id
        AND compliance_events.event_id = page.event_id
        AND compliance_events.detected_at < %(before_ms)s
        AND NOT is_held(compliance_events.device_id, compliance_events.detected_at)
    RETURNING 1
)

SELECT
    (SELECT count(*) FROM gone) AS changed,
    page.at_ms AS after_ms,
    page.device_id AS after_device,
    page.event_id AS after_id
FROM page
ORDER BY page.at_ms DESC, page.device_id DESC, page.event_id DESC
LIMIT 1;
