-- List who may do what with tables, their columns and functions, but for partitions and for what owners may anyway.
--
-- Returns  a row for each object and grantee: object_name, grantee, privileges (with columns where they are granted by
--          column)
-- Scans    system catalogs: some hundreds of grants
-- Load     operators only
SELECT
    may.object_name,
    CASE may.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(may.grantee)::text END AS grantee,
    string_agg(may.privilege, ', ' ORDER BY may.privilege) AS privileges
FROM (
    SELECT
        given.object_name,
        given.owner,
        one.grantee,
        one.privilege_type
        || coalesce(' (' || string_agg(given.column_name, ', ' ORDER BY given.place) || ')', '') AS privilege
    FROM (
        SELECT
            relname::text AS object_name,
            relowner AS owner,
            relacl AS acl,
            NULL::text AS column_name,
            0 AS place
        FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition
        UNION ALL
        SELECT
            pg_class.relname,
            pg_class.relowner,
            pg_attribute.attacl,
            pg_attribute.attname,
            pg_attribute.attnum
        FROM pg_class
        INNER JOIN pg_attribute ON pg_class.oid = pg_attribute.attrelid
        WHERE
            pg_class.relnamespace = 'public'::regnamespace AND NOT pg_class.relispartition
            AND pg_attribute.attacl IS NOT NULL
        UNION ALL
        SELECT
            proname || '(' || pg_get_function_identity_arguments(oid) || ')',
            proowner,
            proacl,
            NULL,
            0
        FROM pg_proc
        WHERE pronamespace = 'public'::regnamespace
    ) AS given
    CROSS JOIN LATERAL aclexplode(given.acl) AS one
    GROUP BY given.object_name, given.owner, one.grantee, one.privilege_type, given.column_name IS NULL
) AS may
WHERE may.grantee != may.owner
GROUP BY may.object_name, may.grantee
ORDER BY may.object_name, may.grantee;
