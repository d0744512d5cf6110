-- List the migrations that are applied, by yoyo's own table, and say whether the database takes writes.
--
-- Returns  migration_id, is_read_only (the same in all), some tens of rows
-- Scans    _yoyo_migration: all are listed, some tens of rows
-- Load     one call for each readiness probe
SELECT
    migration_id,
    current_setting('transaction_read_only')::boolean AS is_read_only
FROM _yoyo_migration;
