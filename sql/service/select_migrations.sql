-- List the migrations that are applied, by yoyo's own table.
--
-- Returns  migration_id, some tens of rows
-- Scans    _yoyo_migration: all are listed, some tens of rows
-- Load     one call for each readiness probe
SELECT migration_id
FROM _yoyo_migration;
