-- Make the monthly partitions that are missing: of the last, this and the coming months. A second call makes nothing.
--
-- months_ahead  int     coming months that get a partition
-- most_moved    bigint  a month of which more rows than these are in the default partition is left there for now
--
-- Returns  a row for each month that had none: name (of the partition), moved (rows taken from the default partition),
--          outcome (created | too_many_strays | name_taken: another table is called so)
-- Calls    ensure_partitions, once: looks at the catalogs, and at the default partitions by their keys
-- Locks    an advisory lock; for a coming month the default partition, while it is read once; for a month that rows
--          come in for already the whole table, while they move: 50,000 in half a second
-- Load     one call a day and host, and one after each migration
SELECT
    name,
    outcome,
    moved
FROM ensure_partitions(%(months_ahead)s, %(most_moved)s);
