-- Delete expired statuses, a page of the table at a time, oldest first; what is held stays. A repeat goes on where the
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
-- Index    extension_status_pkey
-- Calls    is_held for each row of the page: looks holds up by legal_holds_device_id_idx
-- Locks    the rows that it deletes
-- Load     operators only, a transaction a page
WITH page AS (
    SELECT
        reported_at AS at_ms,
        device_id,
        status_id
    FROM extension_status
    WHERE
        reported_at < %(before_ms)s
        AND reported_at >= %(after_ms)s
        AND (reported_at, device_id, status_id) > (%(after_ms)s, %(after_device)s, %(after_id)s)
    ORDER BY reported_at, device_id, status_id
    LIMIT %(amount)s
),

gone AS (
    DELETE FROM extension_status
    USING page
    WHERE
        extension_status.reported_at = page.at_ms
        AND extension_status.device_id = page.device_id
        AND extension_status.status_id = page.status_id
        AND extension_status.reported_at < %(before_ms)s
        AND NOT is_held(extension_status.device_id, extension_status.reported_at)
    RETURNING 1
)

SELECT
    (SELECT count(*) FROM gone) AS changed,
    page.at_ms AS after_ms,
    page.device_id AS after_device,
    page.status_id AS after_id
FROM page
ORDER BY page.at_ms DESC, page.device_id DESC, page.status_id DESC
LIMIT 1;
