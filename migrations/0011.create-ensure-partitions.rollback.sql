-- Loses nothing. Rows of months that have no partition yet go into the default partition.
DROP FUNCTION ensure_partitions(int, bigint);
