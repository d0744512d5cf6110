-- List the months of which an event table has no partition.
--
-- months_back   int  past months that get a partition
-- months_ahead  int  coming months that get one
--
-- Returns  a row for each table and month: table_name, month (its first day), name (of the partition to be),
--          may_be_written (clients may report times in it), is_taken (another table has the name)
-- Calls    missing_months, once: looks at the catalogs
-- Load     one call a day and host, and one after each migration
SELECT
    table_name,
    month,
    name,
    may_be_written,
    is_taken
FROM missing_months(%(months_back)s, %(months_ahead)s)
ORDER BY table_name, month;
