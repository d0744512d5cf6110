-- List the migrations that are applied, by yoyo's own table, and say whether the database takes writes and has the
-- grants of this release.
--
-- Returns  migration_id, and the same in all, some tens of rows: is_read_only, is_owner (this role needs no grants),
--          grants (the versions of config/grants.sql that were applied, as `grants:` and the file's SHA-256)
-- Scans    _yoyo_migration: all are listed, some tens of rows
-- Load     one call for each readiness probe
SELECT
    migration_id,
    current_setting('transaction_read_only')::boolean AS is_read_only,
    (
        SELECT pg_has_role(relowner, 'USAGE')
        FROM pg_class
        WHERE oid = '_yoyo_migration'::regclass
    ) AS is_owner,
    ARRAY(
        SELECT name FROM migration_checksums
        WHERE starts_with(name, 'grants:')
    ) AS grants
FROM _yoyo_migration;
