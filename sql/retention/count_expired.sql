-- Count the expired rows of an event table, for a look before they are deleted.
--
-- table_name         text    the event table
-- expired_before_ms  bigint  rows whose two times are both older have expired, epoch milliseconds
--
-- Returns  one row: expired, held (of them)
-- Calls    count_expired, once: reads every expired row, and for each looks holds up by legal_holds_device_id_idx
-- Load     operators only
SELECT
    expired,
    held
FROM count_expired(%(table_name)s, %(expired_before_ms)s);
