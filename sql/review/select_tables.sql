-- List the tables, with what their partitions hold.
--
-- Returns  a row for each table, by name: name, owner, comment, partitions (their number), row_estimate (null: not
--          analyzed yet), bytes (with indexes)
-- Scans    system catalogs: some hundreds of tables
-- Load     operators only
SELECT
    pg_class.relname AS name,
    pg_get_userbyid(pg_class.relowner) AS owner,
    obj_description(pg_class.oid, 'pg_class') AS comment,
    count(tree.relid) FILTER (WHERE tree.level > 0) AS partitions,
    -- A partitioned table's own estimate is that of its partitions once more.
    sum(nullif(part.reltuples, -1)) FILTER (WHERE part.relkind = 'r')::bigint AS row_estimate,
    sum(pg_total_relation_size(part.oid))::bigint AS bytes
FROM pg_class
CROSS JOIN LATERAL (
    SELECT
        pg_class.oid AS relid,
        0 AS level
    UNION ALL
    SELECT
        found.relid,
        found.level
    FROM pg_partition_tree(pg_class.oid) AS found
    WHERE found.level > 0
) AS tree
INNER JOIN pg_class AS part ON tree.relid = part.oid
WHERE
    pg_class.relnamespace = 'public'::regnamespace AND pg_class.relkind IN ('r', 'p') AND NOT pg_class.relispartition
GROUP BY pg_class.oid, pg_class.relname, pg_class.relowner
ORDER BY pg_class.relname;
