-- Loses nothing: every row is copied back into one table. That takes a minute or more for ten million rows, the
-- tables locked all the while, and as much disk again.
DO $$
DECLARE
    kept record;
    given record;
    before bigint;
    flat text;
    columns text;
BEGIN
    FOR kept IN
        SELECT *
        FROM (
            VALUES ('prompts', 'timestamp'), ('extension_status', 'reported_at'), ('compliance_events', 'detected_at')
        ) AS event_tables (name, key)
    LOOP
        EXECUTE format('LOCK TABLE %I IN ACCESS EXCLUSIVE MODE', kept.name);
        flat := kept.name || '_flat';
        EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING ALL)', flat, kept.name);
        EXECUTE format('COMMENT ON TABLE %I IS %L', flat, obj_description(kept.name::regclass, 'pg_class'));
        EXECUTE (
            SELECT format('ALTER TABLE %I OWNER TO %I', flat, pg_get_userbyid(relowner))
            FROM pg_class
            WHERE oid = kept.name::regclass
        );
        FOR given IN
            SELECT
                may.privilege_type || coalesce(' (' || quote_ident(attname) || ')', '') AS privilege,
                CASE may.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(may.grantee)) END AS grantee
            FROM (
                SELECT
                    relacl AS acl,
                    NULL::name AS attname
                FROM pg_class
                WHERE oid = kept.name::regclass
                UNION ALL
                SELECT
                    attacl,
                    attname
                FROM pg_attribute
                WHERE attrelid = kept.name::regclass AND attnum > 0 AND NOT attisdropped
            ) AS acls, aclexplode(acls.acl) AS may
        LOOP
            EXECUTE format('GRANT %s ON %I TO %s', given.privilege, flat, given.grantee);
        END LOOP;

        SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum)
        INTO columns
        FROM pg_attribute
        WHERE attrelid = kept.name::regclass AND attnum > 0 AND NOT attisdropped;
        EXECUTE format('INSERT INTO %I (%s) SELECT %s FROM %I', flat, columns, columns, kept.name);
        EXECUTE format('SELECT coalesce(max(%I), 0) FROM %I', kept.key, flat) INTO before;
        -- As 0008 left it.
        before := extract(EPOCH FROM (
            date_trunc('month', greatest(now(), to_timestamp(before / 1000.0)) AT TIME ZONE 'UTC')
            + interval '2 months'
        ) AT TIME ZONE 'UTC') * 1000;
        EXECUTE format(
            'ALTER TABLE %I ADD CONSTRAINT %I CHECK (%I < %s)', flat, kept.name || '_before', kept.key, before
        );
        EXECUTE format('DROP TABLE %I', kept.name);
        EXECUTE format('ALTER TABLE %I RENAME TO %I', flat, kept.name);
        EXECUTE format('ALTER INDEX %I RENAME TO %I', flat || '_pkey', kept.name || '_pkey');
    END LOOP;
END
$$;
