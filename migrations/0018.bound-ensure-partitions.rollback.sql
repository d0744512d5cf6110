-- Loses nothing.
DROP FUNCTION ensure_partitions(int, bigint);
ALTER FUNCTION make_partitions(int, bigint) RENAME TO ensure_partitions;
