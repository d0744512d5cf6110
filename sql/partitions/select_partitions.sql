-- List the partitions of all event tables.
--
-- Returns  a row for each partition, oldest first: table_name, name, starts_at, ends_at (null: no such bound, both
--          null: the default partition), row_estimate (null: not analyzed yet), bytes (with indexes)
-- Calls    event_partitions, once: looks at the catalogs
-- Scans    system catalogs: some hundreds of partitions
-- Load     an operator's command, and each scrape of /metrics
SELECT
    parts.table_name,
    parts.name,
    to_timestamp(parts.from_ms / 1000) AS starts_at,
    to_timestamp(parts.to_ms / 1000) AS ends_at,
    nullif(pg_class.reltuples, -1)::bigint AS row_estimate,
    pg_total_relation_size(parts.relation) AS bytes
FROM event_partitions() AS parts
INNER JOIN pg_class ON parts.relation = pg_class.oid
ORDER BY parts.table_name, parts.is_default, starts_at NULLS FIRST, parts.name;
