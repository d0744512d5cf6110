-- List the columns of all tables, but for those of partitions, which are their tables'.
--
-- Returns  a row for each column, in the order of tables and columns: table_name, name, type, is_required,
--          default_value (null: none), comment
-- Scans    system catalogs: some hundreds of columns
-- Load     operators only
SELECT
    pg_class.relname AS table_name,
    pg_attribute.attname AS name,
    format_type(pg_attribute.atttypid, pg_attribute.atttypmod) AS type,
    pg_attribute.attnotnull AS is_required,
    pg_get_expr(pg_attrdef.adbin, pg_attrdef.adrelid) AS default_value,
    col_description(pg_attribute.attrelid, pg_attribute.attnum) AS comment
FROM pg_class
INNER JOIN pg_attribute ON pg_class.oid = pg_attribute.attrelid
LEFT JOIN pg_attrdef
    ON pg_attribute.attrelid = pg_attrdef.adrelid AND pg_attribute.attnum = pg_attrdef.adnum
WHERE
    pg_class.relnamespace = 'public'::regnamespace AND pg_class.relkind IN ('r', 'p') AND NOT pg_class.relispartition
    AND pg_attribute.attnum > 0 AND NOT pg_attribute.attisdropped
ORDER BY pg_class.relname, pg_attribute.attnum;
