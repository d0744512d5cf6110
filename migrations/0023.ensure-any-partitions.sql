-- Partitions of any event table, made without anybody waiting for more than 0.2 s, however much is in the default
-- partition. app/db/partitions.py calls these functions in turn, each in a transaction of its own:
--
-- missing_months   the months that have no partition
-- create_month     makes one that nobody writes to yet: rows of the default partition are read without a lock that
--                  anybody waits for
-- begin_rebuild    for months that may be written to: makes them beside the table, with a new default partition. A
--                  trigger has what is done in the old one be done there too
-- copy_page        copies a page of the old default partition
-- finish_rebuild   puts the new partitions in the place of the old one, in some milliseconds
--
-- ensure_partitions, which did all in one transaction, goes: a service of the previous release logs that it can't make
-- partitions, and three coming months are there.
-- Deploy before the code. Locks: none; the functions are new.
-- squawk-ignore ban-drop-function
DROP FUNCTION ensure_partitions(int, bigint);
-- squawk-ignore ban-drop-function
DROP FUNCTION make_partitions(int, bigint);

CREATE FUNCTION month_start_ms(month date)
RETURNS bigint
LANGUAGE sql
IMMUTABLE
AS $$
SELECT (extract(EPOCH FROM date_trunc('month', month::timestamp) AT TIME ZONE 'UTC') * 1000)::bigint
$$;
REVOKE EXECUTE ON FUNCTION month_start_ms(date) FROM public;

COMMENT ON FUNCTION month_start_ms(date) IS 'The first moment of a month in UTC, in epoch milliseconds.';

CREATE FUNCTION missing_months(months_back int, months_ahead int)
RETURNS TABLE (table_name text, month date, name text, may_be_written boolean, is_taken boolean)
LANGUAGE sql
STABLE
SET search_path = pg_catalog, public, pg_temp
AS $$
WITH months AS (
    SELECT
        starts.month,
        to_char(starts.month, 'YYYYMM') AS label,
        public.month_start_ms(starts.month) AS from_ms,
        public.month_start_ms((starts.month + interval '1 month')::date) AS to_ms
    FROM generate_series(-months_back, months_ahead) AS ahead
    CROSS JOIN LATERAL (
        SELECT (date_trunc('month', now() AT TIME ZONE 'UTC') + ahead * interval '1 month')::date AS month
    ) AS starts
)

SELECT
    described.table_name,
    months.month,
    described.table_name || '_' || months.label,
    -- Clients may be ahead by a day.
    months.from_ms < extract(EPOCH FROM now() + interval '2 days') * 1000,
    to_regclass(format('public.%I', described.table_name || '_' || months.label)) IS NOT NULL
FROM public.event_tables() AS described
CROSS JOIN months
LEFT JOIN public.event_partitions() AS part
    ON
        described.table_name = part.table_name
        AND NOT part.is_default
        AND (part.from_ms IS NULL OR part.from_ms < months.to_ms)
        AND (part.to_ms IS NULL OR part.to_ms > months.from_ms)
WHERE part.name IS NULL
ORDER BY described.table_name, months.month
$$;
REVOKE EXECUTE ON FUNCTION missing_months(int, int) FROM public;

COMMENT ON FUNCTION missing_months(int, int) IS
'The months from so many back to so many ahead of which an event table has no partition. is_taken: another table has '
'the name.';

CREATE FUNCTION create_month(event_table text, month date)
RETURNS text
LANGUAGE plpgsql
-- The service's role may call this, and make no table otherwise.
SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
SET lock_timeout = '100ms'
AS $$
DECLARE
    part text := event_table || '_' || to_char(month, 'YYYYMM');
    bounds text := format(
        'FROM (%s) TO (%s)',
        public.month_start_ms(month), public.month_start_ms((month + interval '1 month')::date)
    );
    outside text := 'outside_' || to_char(month, 'YYYYMM');
    default_part record;
    is_valid boolean;
BEGIN
    IF month NOT BETWEEN now()::date AND now() + interval '10 years' THEN
        RAISE EXCEPTION '% is no coming month', month USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM pg_advisory_xact_lock(hashtextextended('watchpost partitions', 0));
    PERFORM FROM public.missing_months(0, 120) AS missing WHERE missing.name = part AND NOT missing.is_taken;
    IF NOT FOUND THEN
        RETURN 'exists';
    END IF;

    SELECT described.time_column, partitions.name, partitions.relation
    INTO default_part
    FROM public.event_tables() AS described
    LEFT JOIN public.event_partitions() AS partitions
        ON described.table_name = partitions.table_name AND partitions.is_default
    WHERE described.table_name = event_table;
    SELECT convalidated
    INTO is_valid
    FROM pg_constraint
    WHERE conrelid = default_part.relation AND conname = outside;

    -- To attach a partition, PostgreSQL reads the default partition while all who would write to it wait, unless a
    -- constraint says that no row is in the way. One that is not valid yet is made in a moment, and refuses nobody:
    -- the month has not come. To validate it takes time, and makes nobody wait.
    IF is_valid IS NULL AND pg_relation_size(default_part.relation) > 4 * 1024 * 1024 THEN
        EXECUTE format(
            'ALTER TABLE public.%I ADD CONSTRAINT %I CHECK (%s) NOT VALID',
            default_part.name, outside, public.outside_month(default_part.time_column, month)
        );
        RETURN 'next_step';
    END IF;
    BEGIN
        IF NOT is_valid THEN
            EXECUTE format('ALTER TABLE public.%I VALIDATE CONSTRAINT %I', default_part.name, outside);
            RETURN 'next_step';
        END IF;
        EXECUTE format('CREATE TABLE public.%I (LIKE public.%I INCLUDING ALL)', part, event_table);
        EXECUTE format('COMMENT ON TABLE public.%I IS %L', part, public.describe_month(event_table, month));
        EXECUTE format('ALTER TABLE public.%I ATTACH PARTITION public.%I FOR VALUES %s', event_table, part, bounds);
        IF is_valid THEN
            EXECUTE format('ALTER TABLE public.%I DROP CONSTRAINT %I', default_part.name, outside);
        END IF;
    EXCEPTION
        WHEN check_violation THEN
            -- The database's clock may have been wrong.
            EXECUTE format('ALTER TABLE public.%I DROP CONSTRAINT IF EXISTS %I', default_part.name, outside);
            RETURN 'has_rows';
    END;
    RETURN 'created';
END
$$;
REVOKE EXECUTE ON FUNCTION create_month(text, date) FROM public;

COMMENT ON FUNCTION create_month(text, date) IS
'Makes the partition of a coming month, in one to three calls: as long as it returns next_step. Then: created, exists, '
'or has_rows: rows of the month are in the default partition.';

CREATE FUNCTION outside_month(time_column text, month date)
RETURNS text
LANGUAGE sql
IMMUTABLE
SET search_path = pg_catalog, public, pg_temp
AS $$
SELECT format(
    'NOT (%1$I IS NOT NULL AND %1$I >= %2$s AND %1$I < %3$s)',
    time_column, public.month_start_ms(month), public.month_start_ms((month + interval '1 month')::date)
)
$$;
REVOKE EXECUTE ON FUNCTION outside_month(text, date) FROM public;

COMMENT ON FUNCTION outside_month(text, date) IS
'What PostgreSQL requires of rows of the default partition once the month has one of its own, in its own words.';

CREATE FUNCTION describe_month(event_table text, month date)
RETURNS text
LANGUAGE sql
STABLE
AS $$
SELECT format('Partition of %s: %s, in UTC.', event_table, to_char(month, 'YYYY-MM'))
$$;
REVOKE EXECUTE ON FUNCTION describe_month(text, date) FROM public;

COMMENT ON FUNCTION describe_month(text, date) IS 'The comment of a partition.';

CREATE FUNCTION rebuild_of(event_table text)
RETURNS bigint
LANGUAGE sql
-- Not stable: whoever has waited for another asks what is there now. to_regclass might still say what was.
VOLATILE
SET search_path = pg_catalog, public, pg_temp
AS $$
SELECT oid::bigint
FROM pg_class
WHERE relnamespace = 'public'::regnamespace AND relname = 'rebuilt_' || event_table
$$;
REVOKE EXECUTE ON FUNCTION rebuild_of(text) FROM public;

COMMENT ON FUNCTION rebuild_of(text) IS 'The number of the rebuild of an event table that has begun; null: none has.';

CREATE FUNCTION begin_rebuild(event_table text, months date[])
RETURNS bigint
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
SET lock_timeout = '100ms'
SET client_min_messages = warning
AS $$
DECLARE
    rebuilt text := 'rebuilt_' || event_table;
    key record;
    default_part record;
    month date;
    part text;
BEGIN
    IF cardinality(months) NOT BETWEEN 1 AND 12 THEN
        RAISE EXCEPTION '% months at a time', cardinality(months) USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM pg_advisory_xact_lock(hashtextextended('watchpost partitions', 0));
    PERFORM
    FROM unnest(months) AS wanted (month)
    LEFT JOIN public.missing_months(143, 120) AS missing
        ON missing.table_name = event_table AND wanted.month = missing.month AND NOT missing.is_taken
    WHERE missing.month IS NULL;
    IF FOUND THEN
        -- Somebody else has made one meanwhile.
        RETURN NULL;
    END IF;
    SELECT described.time_column AS time, described.id_column AS id
    INTO STRICT key
    FROM public.event_tables() AS described
    WHERE described.table_name = event_table;
    SELECT partitions.name, pg_get_partition_constraintdef(partitions.relation) AS bound
    INTO STRICT default_part
    FROM public.event_partitions() AS partitions
    WHERE partitions.table_name = event_table AND partitions.is_default;

    -- What an earlier call began, and nobody finished.
    EXECUTE format('DROP TABLE IF EXISTS public.%I', rebuilt);
    EXECUTE format(
        'CREATE TABLE public.%I (LIKE public.%I INCLUDING ALL) PARTITION BY RANGE (%I)', rebuilt, event_table, key.time
    );
    EXECUTE format('COMMENT ON TABLE public.%I IS %L', rebuilt, format('Partitions to be of %s.', event_table));
    EXECUTE format('CREATE TABLE public.%I (LIKE public.%I INCLUDING ALL)', rebuilt || '_default', event_table);
    EXECUTE format(
        'COMMENT ON TABLE public.%I IS %L',
        rebuilt || '_default', format('Partition of %s: every row whose month has no partition.', event_table)
    );
    -- What PostgreSQL requires when these tables are attached at the end: so it need not read them then.
    EXECUTE format('ALTER TABLE public.%I ADD CONSTRAINT bound CHECK (%s)', rebuilt || '_default', default_part.bound);
    FOREACH month IN ARRAY months LOOP
        part := rebuilt || '_' || to_char(month, 'YYYYMM');
        EXECUTE format('CREATE TABLE public.%I (LIKE public.%I INCLUDING ALL)', part, event_table);
        EXECUTE format('COMMENT ON TABLE public.%I IS %L', part, public.describe_month(event_table, month));
        EXECUTE format(
            'ALTER TABLE public.%I ADD CONSTRAINT bound CHECK (%I IS NOT NULL AND NOT (%s))',
            part, key.time, public.outside_month(key.time, month)
        );
        EXECUTE format(
            'ALTER TABLE public.%I ADD CONSTRAINT %I CHECK (%s)',
            rebuilt || '_default', 'outside_' || to_char(month, 'YYYYMM'), public.outside_month(key.time, month)
        );
        EXECUTE format(
            'ALTER TABLE public.%I ATTACH PARTITION public.%I FOR VALUES FROM (%s) TO (%s)',
            rebuilt, part,
            public.month_start_ms(month), public.month_start_ms((month + interval '1 month')::date)
        );
    END LOOP;
    EXECUTE format('ALTER TABLE public.%I ATTACH PARTITION public.%I DEFAULT', rebuilt, rebuilt || '_default');
    -- Last, since whoever writes to the default partition waits from now on until this commits.
    EXECUTE format(
        'CREATE OR REPLACE TRIGGER rebuilt AFTER INSERT OR UPDATE OR DELETE ON public.%I '
        'FOR EACH ROW EXECUTE FUNCTION public.mirror_changes(%L, %L, %L)',
        default_part.name, rebuilt, key.time, key.id
    );
    RETURN public.rebuild_of(event_table);
END
$$;
REVOKE EXECUTE ON FUNCTION begin_rebuild(text, date[]) FROM public;

COMMENT ON FUNCTION begin_rebuild(text, date[]) IS
'Makes partitions for up to 12 months beside an event table, and a new default partition, and has what is done in the '
'old one be done there too. Returns a number for the next steps; null: one of the months has a partition.';

CREATE FUNCTION copy_page(
    event_table text, rebuild bigint, after_ms bigint, after_device text, after_id uuid, page_rows int
)
RETURNS TABLE (last_ms bigint, last_device text, last_id uuid)
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
SET lock_timeout = '100ms'
AS $$
DECLARE
    key record;
    columns text;
BEGIN
    IF public.rebuild_of(event_table) IS DISTINCT FROM rebuild THEN
        -- Another rebuild has begun: this one is over.
        RETURN;
    END IF;
    SELECT described.time_column AS time, described.id_column AS id, partitions.name AS default_part
    INTO STRICT key
    FROM public.event_tables() AS described
    INNER JOIN public.event_partitions() AS partitions ON described.table_name = partitions.table_name
    WHERE described.table_name = event_table AND partitions.is_default;
    SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum)
    INTO columns
    FROM pg_attribute
    WHERE attrelid = format('public.%I', event_table)::regclass AND attnum > 0 AND NOT attisdropped;

    -- Locked, so that whoever changes or deletes one of them does so before it is copied, or after: then the trigger
    -- finds the copy. What the trigger has copied already is left as it is.
    RETURN QUERY EXECUTE format(
        $sql$
        WITH page AS (
            SELECT %4$s
            FROM public.%3$I
            WHERE %1$I >= $1 AND (%1$I, device_id, %2$I) > ($1, $2, $3)
            ORDER BY %1$I, device_id, %2$I
            LIMIT $4
            FOR SHARE
        ),

        copied AS (
            INSERT INTO public.%5$I (%4$s)
            SELECT %4$s
            FROM page
            ON CONFLICT DO NOTHING
        )

        SELECT %1$I, device_id, %2$I
        FROM page
        ORDER BY %1$I DESC, device_id DESC, %2$I DESC
        LIMIT 1
        $sql$,
        key.time, key.id, key.default_part, columns, 'rebuilt_' || event_table
    ) USING after_ms, after_device, after_id, page_rows;
END
$$;
REVOKE EXECUTE ON FUNCTION copy_page(text, bigint, bigint, text, uuid, int) FROM public;

COMMENT ON FUNCTION copy_page(text, bigint, bigint, text, uuid, int) IS
'Copies a page of the default partition to where it is rebuilt, and returns the key of its last row. No row: the end.';

CREATE FUNCTION finish_rebuild(event_table text, rebuild bigint)
RETURNS TABLE (name text, moved bigint)
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
SET lock_timeout = '100ms'
SET client_min_messages = warning
AS $$
DECLARE
    rebuilt text := 'rebuilt_' || event_table;
    default_part text;
    is_whole boolean;
    part record;
    index_name text;
    constraint_name text;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('watchpost partitions', 0));
    IF public.rebuild_of(event_table) IS DISTINCT FROM rebuild THEN
        -- Another rebuild has begun: this one is over.
        RETURN;
    END IF;
    SELECT partitions.name
    INTO STRICT default_part
    FROM public.event_partitions() AS partitions
    WHERE partitions.table_name = event_table AND partitions.is_default;

    -- While nobody waits: nothing is dropped that was not copied, and plans know how much is in the new partitions.
    EXECUTE format(
        'SELECT (SELECT count(*) FROM public.%I) = (SELECT count(*) FROM public.%I)', default_part, rebuilt
    ) INTO is_whole;
    IF NOT is_whole THEN
        RAISE EXCEPTION 'the copy of % has other rows', default_part USING ERRCODE = 'data_corrupted';
    END IF;
    FOR part IN
        SELECT inhrelid::regclass::text AS name
        FROM pg_inherits
        WHERE inhparent = rebuild::oid AND pg_relation_size(inhrelid) > 0
    LOOP
        -- Not the empty ones: plans would take them for empty still when they have filled.
        EXECUTE format('ANALYZE %s', part.name);
    END LOOP;

    EXECUTE format('LOCK TABLE ONLY public.%I IN ACCESS EXCLUSIVE MODE', event_table);
    EXECUTE format('ALTER TABLE public.%I DETACH PARTITION public.%I', event_table, default_part);
    EXECUTE format('DROP TABLE public.%I', default_part);
    FOR part IN
        SELECT
            pg_class.relname::text AS old_name,
            substr(pg_class.relname, length('rebuilt_') + 1) AS name,
            pg_get_expr(pg_class.relpartbound, pg_class.oid) AS bound,
            greatest(pg_class.reltuples, 0)::bigint AS row_estimate,
            pg_class.oid
        FROM pg_inherits
        INNER JOIN pg_class ON pg_inherits.inhrelid = pg_class.oid
        WHERE pg_inherits.inhparent = rebuild::oid
        -- The default partition first: of each that comes after it, it has a constraint that no row is in the way.
        ORDER BY pg_get_expr(pg_class.relpartbound, pg_class.oid) != 'DEFAULT', pg_class.relname
    LOOP
        EXECUTE format('ALTER TABLE public.%I DETACH PARTITION public.%I', rebuilt, part.old_name);
        EXECUTE format('ALTER TABLE public.%I RENAME TO %I', part.old_name, part.name);
        FOR index_name IN
            SELECT pg_class.relname
            FROM pg_index
            INNER JOIN pg_class ON pg_index.indexrelid = pg_class.oid
            WHERE pg_index.indrelid = part.oid AND pg_class.relname LIKE 'rebuilt\_%'
        LOOP
            EXECUTE format(
                'ALTER INDEX public.%I RENAME TO %I', index_name, substr(index_name, length('rebuilt_') + 1)
            );
        END LOOP;
        EXECUTE format('ALTER TABLE public.%I ATTACH PARTITION public.%I %s', event_table, part.name, part.bound);
        IF part.bound != 'DEFAULT' THEN
            EXECUTE format('ALTER TABLE public.%I DROP CONSTRAINT bound', part.name);
            name := part.name;
            moved := part.row_estimate;
            RETURN NEXT;
        END IF;
    END LOOP;
    FOR constraint_name IN
        SELECT conname
        FROM pg_constraint
        WHERE
            conrelid = format('public.%I', event_table || '_default')::regclass
            AND (conname = 'bound' OR conname LIKE 'outside\_%')
    LOOP
        EXECUTE format('ALTER TABLE public.%I DROP CONSTRAINT %I', event_table || '_default', constraint_name);
    END LOOP;
    EXECUTE format('DROP TABLE public.%I', rebuilt);
END
$$;
REVOKE EXECUTE ON FUNCTION finish_rebuild(text, bigint) FROM public;

COMMENT ON FUNCTION finish_rebuild(text, bigint) IS
'Puts the partitions that were made beside an event table in the place of its default partition, and returns the '
'months and about how many rows moved to each. No row: another rebuild has begun.';

CREATE FUNCTION abandon_rebuild(event_table text, rebuild bigint)
RETURNS void
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
SET lock_timeout = '100ms'
AS $$
DECLARE
    default_part text;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('watchpost partitions', 0));
    IF public.rebuild_of(event_table) = rebuild THEN
        SELECT partitions.name
        INTO STRICT default_part
        FROM public.event_partitions() AS partitions
        WHERE partitions.table_name = event_table AND partitions.is_default;
        EXECUTE format('DROP TRIGGER rebuilt ON public.%I', default_part);
        EXECUTE format('DROP TABLE public.%I', 'rebuilt_' || event_table);
    END IF;
END
$$;
REVOKE EXECUTE ON FUNCTION abandon_rebuild(text, bigint) FROM public;

COMMENT ON FUNCTION abandon_rebuild(text, bigint) IS
'Drops what begin_rebuild made, when it is not to be finished. The table itself is as it was all the while.';
