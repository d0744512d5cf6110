-- Find out whether something of a person's is held in an event table, a page of the table at a time.
--
-- table_name    text    the event table
-- device_id     text    whose rows; or null: everybody's
-- username      text    whose rows; or null: everybody's
-- after_ms      bigint  the last row of the page before: its time,
-- after_device  text    its device
-- after_id      uuid    and its id
-- amount        integer rows a page
--
-- Returns  no row at the end of the table, else one: changed (rows of the page that are held), and the last row of the
--          page as after_ms, after_device, after_id
-- Calls    count_held, once: reads the page by the table's key, asks is_about of each row, and for each of whom it is
--          about looks holds up by legal_holds_device_id_idx
-- Load     operators only, before an erasure, and only while there are holds
SELECT
    changed,
    last_ms AS after_ms,
    last_device AS after_device,
    last_id AS after_id
FROM count_held(
    %(table_name)s,
    %(device_id)s,
    %(username)s,
    %(after_ms)s,
    %(after_device)s,
    %(after_id)s,
    %(amount)s
);
