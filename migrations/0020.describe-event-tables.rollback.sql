-- Loses nothing.
DROP FUNCTION event_partitions();
DROP FUNCTION event_tables();
