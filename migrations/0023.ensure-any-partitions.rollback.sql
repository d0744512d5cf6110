-- Loses nothing. What a rebuild has begun is dropped; every row is in the default partition still.
DO $$
DECLARE
    begun record;
BEGIN
    FOR begun IN
        SELECT
            table_name,
            rebuild_of(table_name) AS rebuild
        FROM event_tables()
    LOOP
        PERFORM abandon_rebuild(begun.table_name, begun.rebuild);
    END LOOP;
END
$$;
DROP FUNCTION abandon_rebuild(text, bigint);
DROP FUNCTION finish_rebuild(text, bigint);
DROP FUNCTION copy_page(text, bigint, bigint, text, uuid, int);
DROP FUNCTION begin_rebuild(text, date[]);
DROP FUNCTION rebuild_of(text);
DROP FUNCTION describe_month(text, date);
DROP FUNCTION create_month(text, date);
DROP FUNCTION outside_month(text, date);
DROP FUNCTION missing_months(int, int);
DROP FUNCTION month_start_ms(date);

-- As 0018 left them.
CREATE FUNCTION make_partitions(months_ahead int, most_moved bigint DEFAULT 50000)
RETURNS TABLE (name text, outcome text, moved bigint)
LANGUAGE plpgsql
-- The service's role may call this, and make no table otherwise.
SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
-- How long one caller waits for another; see below for tables.
SET lock_timeout = '10s'
AS $$
DECLARE
    kept record;
    month record;
    columns text;
    strays bigint;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('watchpost partitions', 0));
    -- Whoever comes meanwhile queues behind this. Better to give up and come again.
    PERFORM set_config('lock_timeout', '1s', TRUE);
    -- In the order in which a batch writes them, so that no two wait for each other.
    FOR kept IN
        SELECT *
        FROM (
            VALUES ('prompts', 'timestamp'), ('extension_status', 'reported_at'), ('compliance_events', 'detected_at')
        ) AS event_tables (name, key)
    LOOP
        SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum)
        INTO columns
        FROM pg_attribute
        WHERE attrelid = format('public.%I', kept.name)::regclass AND attnum > 0 AND NOT attisdropped;

        -- Bounds are epoch milliseconds.
        FOR month IN
            SELECT
                kept.name || '_' || to_char(starts.at, 'YYYYMM') AS name,
                to_char(starts.at, 'YYYY-MM') AS label,
                (extract(EPOCH FROM starts.at AT TIME ZONE 'UTC') * 1000)::bigint AS first,
                (extract(EPOCH FROM (starts.at + interval '1 month') AT TIME ZONE 'UTC') * 1000)::bigint AS next,
                starts.at AT TIME ZONE 'UTC' < now() + interval '2 days' AS may_be_written
            FROM generate_series(-1, months_ahead) AS ahead
            CROSS JOIN LATERAL (
                SELECT date_trunc('month', now() AT TIME ZONE 'UTC') + ahead * interval '1 month' AS at
            ) AS starts
            ORDER BY starts.at
        LOOP
            CONTINUE WHEN EXISTS (
                SELECT
                FROM pg_inherits
                INNER JOIN pg_class ON pg_inherits.inhrelid = pg_class.oid
                CROSS JOIN LATERAL regexp_match(
                    pg_get_expr(pg_class.relpartbound, pg_class.oid),
                    $re$FROM \((?:MINVALUE|'(-?\d+)')\) TO \((?:MAXVALUE|'(-?\d+)')\)$re$
                ) AS bound
                WHERE
                    pg_inherits.inhparent = format('public.%I', kept.name)::regclass
                    AND bound IS NOT NULL
                    AND (bound[1] IS NULL OR bound[1]::bigint < month.next)
                    AND (bound[2] IS NULL OR bound[2]::bigint > month.first)
            );
            name := month.name;
            moved := 0;
            IF to_regclass(format('public.%I', month.name)) IS NOT NULL THEN
                outcome := 'name_taken';
                RETURN NEXT;
                CONTINUE;
            END IF;
            EXECUTE format(
                'SELECT count(*) FROM (SELECT FROM public.%I WHERE %I >= $1 AND %I < $2 LIMIT $3) AS found',
                kept.name || '_default', kept.key, kept.key
            ) INTO strays USING month.first, month.next, most_moved + 1;
            IF strays > most_moved THEN
                outcome := 'too_many_strays';
                RETURN NEXT;
                CONTINUE;
            END IF;

            -- Rows of this month are in the default partition, or on their way there: without this lock a writer would
            -- be refused by the default's new bound, and a reader that has planned already would not look where the
            -- rows are now. Other months are attached while everybody reads and writes.
            IF strays > 0 OR month.may_be_written THEN
                EXECUTE format('LOCK TABLE ONLY public.%I IN ACCESS EXCLUSIVE MODE', kept.name);
            END IF;
            EXECUTE format('CREATE TABLE public.%I (LIKE public.%I INCLUDING ALL)', month.name, kept.name);
            EXECUTE format(
                'COMMENT ON TABLE public.%I IS %L',
                month.name, format('Partition of %s: %s, in UTC.', kept.name, month.label)
            );
            IF strays > 0 OR month.may_be_written THEN
                EXECUTE format(
                    'WITH gone AS (DELETE FROM public.%I WHERE %I >= $1 AND %I < $2 RETURNING %s) '
                    'INSERT INTO public.%I (%s) SELECT %s FROM gone',
                    kept.name || '_default', kept.key, kept.key, columns, month.name, columns, columns
                ) USING month.first, month.next;
                GET DIAGNOSTICS moved = ROW_COUNT;
            END IF;
            -- Beside what is locked already: the default partition exclusively, while it is read once.
            EXECUTE format(
                'ALTER TABLE public.%I ATTACH PARTITION public.%I FOR VALUES FROM (%s) TO (%s)',
                kept.name, month.name, month.first, month.next
            );
            outcome := 'created';
            RETURN NEXT;
        END LOOP;
    END LOOP;
END
$$;

REVOKE EXECUTE ON FUNCTION make_partitions(int, bigint) FROM public;


CREATE FUNCTION ensure_partitions(months_ahead int, most_moved bigint DEFAULT 50000)
RETURNS TABLE (name text, outcome text, moved bigint)
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
BEGIN
    IF months_ahead > 120 THEN
        RAISE EXCEPTION '% months are too many', months_ahead USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN QUERY SELECT made.name, made.outcome, made.moved FROM public.make_partitions(months_ahead, most_moved) AS made;
END
$$;

REVOKE EXECUTE ON FUNCTION ensure_partitions(int, bigint) FROM public;

COMMENT ON FUNCTION ensure_partitions(int, bigint) IS
'Makes the missing monthly partitions of the last, this and so many coming months, 120 at most, and moves at most so '
'many rows of each there from the default partition. Outcomes: created; too_many_strays; name_taken.';
COMMENT ON FUNCTION make_partitions(int, bigint) IS 'What ensure_partitions does, without its bound.';
