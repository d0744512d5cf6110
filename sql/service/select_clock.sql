-- The database's clock.
--
-- Returns  one row: now_ms, epoch milliseconds
-- Reads    no table
-- Load     operators only
SELECT (extract(EPOCH FROM now()) * 1000)::bigint AS now_ms;
