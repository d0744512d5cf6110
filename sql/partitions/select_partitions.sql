-- List the partitions of all tables.
--
-- Returns  a row for each partition, oldest first: table_name, name, starts_at, ends_at (null: no such bound, both
--          null: the default partition), row_estimate (null: not analyzed yet), bytes (with indexes)
-- Scans    system catalogs: some hundreds of partitions
-- Load     an operator's command, and each scrape of /metrics
SELECT
    parent.relname AS table_name,
    part.relname AS name,
    to_timestamp(bound.given[1]::bigint / 1000) AS starts_at,
    to_timestamp(bound.given[2]::bigint / 1000) AS ends_at,
    nullif(part.reltuples, -1)::bigint AS row_estimate,
    pg_total_relation_size(part.oid) AS bytes
FROM pg_partitioned_table
INNER JOIN pg_class AS parent ON pg_partitioned_table.partrelid = parent.oid
INNER JOIN pg_inherits ON parent.oid = pg_inherits.inhparent
INNER JOIN pg_class AS part ON pg_inherits.inhrelid = part.oid
LEFT JOIN LATERAL regexp_match(
    pg_get_expr(part.relpartbound, part.oid),
    'FROM \((?:MINVALUE|''(-?[0-9]+)'')\) TO \((?:MAXVALUE|''(-?[0-9]+)'')\)'
) AS bound (given) ON TRUE
WHERE parent.relnamespace = 'public'::regnamespace
ORDER BY parent.relname, bound.given IS NULL, starts_at NULLS FIRST, part.relname;
