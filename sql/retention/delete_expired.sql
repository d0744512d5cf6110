-- Delete the expired rows of an event table, a page of the table at a time, oldest first; what is held stays. A repeat
-- goes on where the last one stopped.
--
-- table_name         text    the event table
-- expired_before_ms  bigint  rows whose two times are both older have expired, epoch milliseconds
-- after_ms           bigint  the last row of the page before: its time,
-- after_device       text    its device
-- after_id           uuid    and its id
-- amount             integer rows a page
--
-- Returns  no row when nothing older is left, else one: changed (rows deleted), and the last row of the page as
--          after_ms, after_device, after_id
-- Calls    delete_expired, once: reads the page by the table's key, and for each row looks holds up by
--          legal_holds_device_id_idx
-- Locks    the rows that it deletes
-- Load     operators only, a transaction a page
SELECT
    changed,
    last_ms AS after_ms,
    last_device AS after_device,
    last_id AS after_id
FROM delete_expired(
    %(table_name)s, %(expired_before_ms)s, %(after_ms)s, %(after_device)s, %(after_id)s, %(amount)s
);
