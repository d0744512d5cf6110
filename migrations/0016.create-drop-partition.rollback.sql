-- Loses nothing.
DROP FUNCTION drop_partition(text, bigint);
