-- Copy a page of the default partition to where it is rebuilt. A repeat copies nothing twice.
--
-- table_name    text    the event table
-- rebuild       bigint  what begin_rebuild returned
-- after_ms      bigint  the last row of the page before: its time,
-- after_device  text    its device
-- after_id      uuid    and its id
-- amount        integer rows a page
--
-- Returns  no row at the end, or when another rebuild has begun; else one: the last row of the page as after_ms,
--          after_device, after_id
-- Fails    by lock_not_available when somebody changes one of its rows for longer than a moment; ask again
-- Calls    copy_page, once: reads the page by the table's key
-- Locks    the rows of the page, against changes
-- Load     a transaction a page, after begin_rebuild
SELECT
    last_ms AS after_ms,
    last_device AS after_device,
    last_id AS after_id
FROM copy_page(
    %(table_name)s, %(rebuild)s, %(after_ms)s, %(after_device)s, %(after_id)s, %(amount)s
);
