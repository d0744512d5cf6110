-- List the indexes and checks of all tables, but for those of partitions, which are their tables'.
--
-- Returns  a row for each, in the order of tables: table_name, name, definition, bytes (with those of partitions; null
--          for a check), is_valid
-- Scans    system catalogs: some hundreds of indexes
-- Load     operators only
SELECT
    pg_class.relname AS table_name,
    listed.name,
    listed.definition,
    listed.bytes,
    listed.is_valid
FROM pg_class
CROSS JOIN LATERAL (
    SELECT
        pg_index.indexrelid::regclass::text AS name,
        pg_get_indexdef(pg_index.indexrelid) AS definition,
        pg_relation_size(pg_index.indexrelid) + coalesce((
            SELECT sum(pg_relation_size(part.relid))
            FROM pg_partition_tree(pg_index.indexrelid) AS part
            WHERE part.level > 0
        ), 0)::bigint AS bytes,
        pg_index.indisvalid AS is_valid
    FROM pg_index
    WHERE pg_index.indrelid = pg_class.oid
    UNION ALL
    SELECT
        pg_constraint.conname,
        pg_get_constraintdef(pg_constraint.oid),
        NULL,
        pg_constraint.convalidated
    FROM pg_constraint
    WHERE pg_constraint.conrelid = pg_class.oid AND pg_constraint.contype = 'c'
) AS listed
WHERE
    pg_class.relnamespace = 'public'::regnamespace AND pg_class.relkind IN ('r', 'p') AND NOT pg_class.relispartition
ORDER BY pg_class.relname, listed.bytes IS NULL, listed.name;
