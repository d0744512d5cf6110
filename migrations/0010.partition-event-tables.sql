-- Event tables: one partition a month (UTC), so that reads by time touch few and old months can go at once. What is
-- stored so far becomes the first partition, unread and uncopied; an empty table is replaced. A default partition
-- catches every row whose month has none. 0011 makes the months.
-- Deploy before the code. Statements that are prepared go on: they find the new table by its name. A view would go on
-- reading the first partition alone, so this refuses to run while there is one: drop it before, make it again after.
-- Locks: all three tables exclusively, for the milliseconds that this takes.
DO $$
DECLARE
    kept record;
    given record;
    before bigint;
    old text;
    is_empty boolean;
BEGIN
    FOR kept IN
        SELECT *
        FROM (
            VALUES ('prompts', 'timestamp'), ('extension_status', 'reported_at'), ('compliance_events', 'detected_at')
        ) AS event_tables (name, key)
    LOOP
        EXECUTE format('LOCK TABLE %I IN ACCESS EXCLUSIVE MODE', kept.name);
        FOR given IN
            SELECT DISTINCT pg_rewrite.ev_class::regclass AS view
            FROM pg_depend
            INNER JOIN pg_rewrite ON pg_depend.classid = 'pg_rewrite'::regclass AND pg_depend.objid = pg_rewrite.oid
            WHERE pg_depend.refclassid = 'pg_class'::regclass AND pg_depend.refobjid = kept.name::regclass
        LOOP
            RAISE EXCEPTION 'the view % reads %: drop it, migrate, and make it again', given.view, kept.name
                USING ERRCODE = 'dependent_objects_still_exist';
        END LOOP;

        SELECT substring(pg_get_constraintdef(oid) FROM '[0-9]{10,}')::bigint
        INTO STRICT before
        FROM pg_constraint
        WHERE conrelid = kept.name::regclass AND conname = kept.name || '_before';
        old := kept.name || '_before_' || to_char(to_timestamp(before / 1000) AT TIME ZONE 'UTC', 'YYYYMM');
        EXECUTE format('ALTER TABLE %I RENAME TO %I', kept.name, old);
        EXECUTE format('ALTER INDEX %I RENAME TO %I', kept.name || '_pkey', old || '_pkey');

        EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING ALL) PARTITION BY RANGE (%I)', kept.name, old, kept.key);
        EXECUTE format('ALTER TABLE %I DROP CONSTRAINT %I', kept.name, kept.name || '_before');
        EXECUTE format('COMMENT ON TABLE %I IS %L', kept.name, obj_description(old::regclass, 'pg_class'));
        -- Whoever could use the table still can.
        EXECUTE (
            SELECT format('ALTER TABLE %I OWNER TO %I', kept.name, pg_get_userbyid(relowner))
            FROM pg_class
            WHERE oid = old::regclass
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
                WHERE oid = old::regclass
                UNION ALL
                SELECT
                    attacl,
                    attname
                FROM pg_attribute
                WHERE attrelid = old::regclass AND attnum > 0 AND NOT attisdropped
            ) AS acls, aclexplode(acls.acl) AS may
        LOOP
            EXECUTE format('GRANT %s ON %I TO %s', given.privilege, kept.name, given.grantee);
        END LOOP;

        EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING ALL)', kept.name || '_default', kept.name);
        EXECUTE format(
            'COMMENT ON TABLE %I IS %L',
            kept.name || '_default', format('Partition of %s: every row whose month has no partition.', kept.name)
        );
        EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I DEFAULT', kept.name, kept.name || '_default');

        EXECUTE format('SELECT NOT EXISTS (SELECT FROM %I)', old) INTO is_empty;
        IF is_empty THEN
            EXECUTE format('DROP TABLE %I', old);
            CONTINUE;
        END IF;
        EXECUTE format(
            'COMMENT ON TABLE %I IS %L',
            old, format('Partition of %s: what was there before there were partitions.', kept.name)
        );
        -- No scan: the constraint says what the partition's bound says.
        EXECUTE format(
            'ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (MINVALUE) TO (%s)', kept.name, old, before
        );
        EXECUTE format('ALTER TABLE %I DROP CONSTRAINT %I', old, kept.name || '_before');
    END LOOP;
END
$$;
