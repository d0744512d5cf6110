-- Archive devices of which nothing arrived for long, a page of the table at a time. A repeat finds nothing to archive.
--
-- after      text    the last device_id of the page before; empty for the first page
-- seconds    bigint  nothing of it arrived for so long
-- amount     integer rows a page
--
-- Returns  no row at the end of the table, else one: changed (rows archived), and the last device_id of the page as
--          after
-- Index    devices_pkey
-- Calls    is_silent for each row of the page: looks its instances up by browser_instances_device_id_idx
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
        AND is_silent(devices, %(seconds)s)
    RETURNING 1
)

SELECT
    (SELECT count(*) FROM archived) AS changed,
    max(page.device_id) AS after
FROM page
HAVING count(*) > 0;
