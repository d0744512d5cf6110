-- event_tables, event_partitions: which tables hold events, and which partitions they have, as the catalogs say.
-- Retention, legal holds, erasure and partitions read these, so that a new event table needs no change in them.
-- Deploy before the code. Locks: none; the functions are new.
CREATE FUNCTION event_tables()
RETURNS TABLE (table_name text, time_column text, id_column text)
LANGUAGE sql
STABLE
ROWS 10
SET search_path = pg_catalog, public, pg_temp
AS $$
SELECT
    pg_class.relname::text,
    time_attribute.attname::text,
    id_attribute.attname::text
FROM pg_partitioned_table
INNER JOIN pg_class ON pg_partitioned_table.partrelid = pg_class.oid
INNER JOIN pg_index ON pg_class.oid = pg_index.indrelid AND pg_index.indisprimary AND pg_index.indnkeyatts = 3
INNER JOIN pg_attribute AS time_attribute
    ON pg_class.oid = time_attribute.attrelid AND pg_index.indkey[0] = time_attribute.attnum
INNER JOIN pg_attribute AS device_attribute
    ON pg_class.oid = device_attribute.attrelid AND pg_index.indkey[1] = device_attribute.attnum
INNER JOIN pg_attribute AS id_attribute
    ON pg_class.oid = id_attribute.attrelid AND pg_index.indkey[2] = id_attribute.attnum
WHERE
    pg_class.relnamespace = 'public'::regnamespace
    AND NOT pg_class.relispartition
    -- What is being built beside a table, to take the place of some of its partitions.
    AND pg_class.relname NOT LIKE 'rebuilt\_%'
    AND pg_partitioned_table.partstrat = 'r'
    AND pg_partitioned_table.partnatts = 1
    AND pg_partitioned_table.partattrs[0] = time_attribute.attnum
    AND time_attribute.atttypid = 'bigint'::regtype
    AND device_attribute.attname = 'device_id'
    AND id_attribute.atttypid = 'uuid'::regtype
ORDER BY pg_class.relname
$$;
REVOKE EXECUTE ON FUNCTION event_tables() FROM public;

COMMENT ON FUNCTION event_tables() IS
'The event tables: those partitioned by a time in epoch milliseconds, with the key (time, device_id, id).';

CREATE FUNCTION event_partitions()
RETURNS TABLE (table_name text, name text, relation regclass, from_ms bigint, to_ms bigint, is_default boolean)
LANGUAGE sql
STABLE
ROWS 200
SET search_path = pg_catalog, public, pg_temp
AS $$
SELECT
    event_tables.table_name,
    part.relname::text,
    part.oid::regclass,
    bound.ms[1]::bigint,
    bound.ms[2]::bigint,
    bound.ms IS NULL
FROM public.event_tables()
INNER JOIN pg_inherits ON format('public.%I', event_tables.table_name)::regclass = pg_inherits.inhparent
INNER JOIN pg_class AS part ON pg_inherits.inhrelid = part.oid
LEFT JOIN LATERAL regexp_match(
    pg_get_expr(part.relpartbound, part.oid),
    'FROM \((?:MINVALUE|''(-?[0-9]+)'')\) TO \((?:MAXVALUE|''(-?[0-9]+)'')\)'
) AS bound (ms) ON TRUE
ORDER BY event_tables.table_name, bound.ms IS NULL, bound.ms[1]::bigint NULLS FIRST, part.relname
$$;
REVOKE EXECUTE ON FUNCTION event_partitions() FROM public;

COMMENT ON FUNCTION event_partitions() IS
'The partitions of the event tables, oldest first: from from_ms on and before to_ms, in epoch milliseconds. Null: no '
'such bound; both null: the default partition.';
