-- Archive devices that were not heard of for long, a page of the table at a time. A repeat finds nothing to archive.
--
-- after      text    the last device_id of the page before; empty for the first page
-- seconds    bigint  not heard of for so long
-- amount     integer rows a page
--
-- Returns  no row at the end of the table, else one: changed (rows archived), and the last device_id of the page as
--          after
-- Index    devices_pkey
-- Locks    the rows that it archives
-- Load     operators only, a transaction a page
WITH page AS (
    SELECT device_id
    FROM devices
    WHERE device_id > %(after)s
    ORDER BY device_id
    LIMIT %(amount)s
),

archived AS (
    UPDATE devices
    SET archived_at = now()
    FROM page
    WHERE
        devices.device_id = page.device_id
        AND devices.archived_at IS NULL
        AND greatest(devices.last_heartbeat, devices.registered_at) < now() - %(seconds)s * interval '1 second'
    RETURNING 1
)

SELECT
    (SELECT count(*) FROM archived) AS changed,
    max(page.device_id) AS after
FROM page
HAVING count(*) > 0;
