-- Have it be noted which browser instances a device's reports name, while one of them sends no heartbeats; a page of
-- the devices at a time. A repeat changes nothing.
--
-- after   text    the last device_id of the page before; empty for the first page
-- amount  integer rows a page
--
-- Returns  no row at the end of the table, else one: changed (devices), and the last device_id of the page as after
-- Index    devices_pkey
-- Calls    has_quiet_instances for each row of the page: looks its instances up by browser_instances_device_id_idx
-- Locks    the rows that it changes
-- Load     operators only, a transaction a page
WITH page AS (
    SELECT
        device_id,
        instances_watched_at IS NOT NULL AS is_watched,
        has_quiet_instances(device_id) AS is_quiet
    FROM devices
    WHERE device_id > %(after)s
    ORDER BY device_id
    LIMIT %(amount)s
),

changed AS (
    UPDATE devices
    SET instances_watched_at = CASE WHEN page.is_quiet THEN statement_timestamp() END
    FROM page
    WHERE devices.device_id = page.device_id AND page.is_watched != page.is_quiet
    RETURNING 1
)

SELECT
    (SELECT count(*) FROM changed) AS changed,
    max(page.device_id) AS after
FROM page
HAVING count(*) > 0;
