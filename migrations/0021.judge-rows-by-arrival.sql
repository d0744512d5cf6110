-- Retention and holds judge a row by the later of its two times: the client's, and created_at, when it arrived. So a
-- laptop whose clock is wrong, or one that was offline for long, decides neither what is deleted nor what is held.
-- Each function works for every event table. is_held with two arguments goes: whoever still calls it is refused, rather
-- than deletes what is held.
-- Deploy before the code. Locks: none; the functions are new. `retention run` and `user erase` of the previous release
-- fail from now on.
-- squawk-ignore ban-drop-function
DROP FUNCTION is_held(text, bigint);
-- squawk-ignore ban-drop-function
DROP FUNCTION drop_partition(text, bigint);

CREATE FUNCTION is_held(row_device_id text, row_ms bigint, row_created_at timestamptz)
RETURNS boolean
LANGUAGE sql
STABLE
AS $$
SELECT EXISTS (
    SELECT
    FROM legal_holds
    WHERE
        released_at IS NULL
        AND (device_id IS NULL OR device_id = row_device_id)
        AND (
            ((from_ms IS NULL OR from_ms <= row_ms) AND (to_ms IS NULL OR to_ms > row_ms))
            OR (
                (from_ms IS NULL OR to_timestamp(from_ms / 1000.0) <= row_created_at)
                AND (to_ms IS NULL OR to_timestamp(to_ms / 1000.0) > row_created_at)
            )
        )
)
$$;
REVOKE EXECUTE ON FUNCTION is_held(text, bigint, timestamptz) FROM public;

COMMENT ON FUNCTION is_held(text, bigint, timestamptz) IS
'Whether a row is held: a hold in force covers its time, or the time at which it arrived.';
COMMENT ON COLUMN legal_holds.from_ms IS
'Start of what is held, epoch milliseconds, included; null: from the first. A row is held when its client''s time or '
'its arrival is in the span.';
COMMENT ON COLUMN legal_holds.to_ms IS 'End of what is held, epoch milliseconds, excluded; null: for ever.';

CREATE FUNCTION count_expired(event_table text, expired_before_ms bigint)
RETURNS TABLE (expired bigint, held bigint)
LANGUAGE plpgsql
STABLE
SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    time_column text;
BEGIN
    SELECT described.time_column
    INTO STRICT time_column
    FROM public.event_tables() AS described
    WHERE described.table_name = event_table;

    RETURN QUERY EXECUTE format(
        'SELECT count(*), count(*) FILTER (WHERE public.is_held(device_id, %1$I, created_at)) '
        'FROM public.%2$I WHERE %1$I < $1 AND created_at < to_timestamp($1 / 1000.0)',
        time_column, event_table
    ) USING expired_before_ms;
END
$$;
REVOKE EXECUTE ON FUNCTION count_expired(text, bigint) FROM public;

COMMENT ON FUNCTION count_expired(text, bigint) IS
'How many rows of an event table have expired, and how many of them are held.';

CREATE FUNCTION delete_expired(
    event_table text, expired_before_ms bigint, after_ms bigint, after_device text, after_id uuid, page_rows int
)
RETURNS TABLE (changed bigint, last_ms bigint, last_device text, last_id uuid)
LANGUAGE plpgsql
SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    key record;
BEGIN
    SELECT described.time_column AS time, described.id_column AS id
    INTO STRICT key
    FROM public.event_tables() AS described
    WHERE described.table_name = event_table;

    RETURN QUERY EXECUTE format(
        $sql$
        WITH page AS (
            SELECT %1$I AS at_ms, device_id, %2$I AS id
            FROM public.%3$I
            WHERE %1$I < $1 AND %1$I >= $2 AND (%1$I, device_id, %2$I) > ($2, $3, $4)
            ORDER BY %1$I, device_id, %2$I
            LIMIT $5
        ),

        deleted AS (
            DELETE FROM public.%3$I AS stored
            USING page
            WHERE
                stored.%1$I = page.at_ms
                AND stored.device_id = page.device_id
                AND stored.%2$I = page.id
                -- Later months are not looked into.
                AND stored.%1$I < $1
                AND stored.created_at < to_timestamp($1 / 1000.0)
                AND NOT public.is_held(stored.device_id, stored.%1$I, stored.created_at)
            RETURNING 1
        )

        SELECT (SELECT count(*) FROM deleted), page.at_ms, page.device_id, page.id
        FROM page
        ORDER BY page.at_ms DESC, page.device_id DESC, page.id DESC
        LIMIT 1
        $sql$,
        key.time, key.id, event_table
    ) USING expired_before_ms, after_ms, after_device, after_id, page_rows;
END
$$;
REVOKE EXECUTE ON FUNCTION delete_expired(text, bigint, bigint, text, uuid, int) FROM public;

COMMENT ON FUNCTION delete_expired(text, bigint, bigint, text, uuid, int) IS
'Deletes the expired rows of one page of an event table, but for those that are held. No row: the page was empty.';

CREATE FUNCTION mirror_changes()
RETURNS trigger
LANGUAGE plpgsql
-- The service's role may not write to the other table.
SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
BEGIN
    IF tg_op != 'INSERT' THEN
        EXECUTE format(
            'DELETE FROM public.%I WHERE %I = ($1).%2$I AND device_id = ($1).device_id AND %3$I = ($1).%3$I',
            tg_argv[0], tg_argv[1], tg_argv[2]
        ) USING old;
    END IF;
    IF tg_op != 'DELETE' THEN
        EXECUTE format('INSERT INTO public.%I SELECT ($1).* ON CONFLICT DO NOTHING', tg_argv[0]) USING new;
    END IF;
    RETURN NULL;
END
$$;
REVOKE EXECUTE ON FUNCTION mirror_changes() FROM public;

COMMENT ON FUNCTION mirror_changes() IS
'Trigger of a partition, for as long as it is watched or rebuilt: does the same in the table that its first argument '
'names. The others are the columns of the time and the id.';

CREATE FUNCTION watch_partition(part text)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, public, pg_temp
SET lock_timeout = '200ms'
SET client_min_messages = warning
AS $$
DECLARE
    key record;
BEGIN
    SELECT described.time_column AS time, described.id_column AS id
    INTO key
    FROM public.event_partitions() AS found
    INNER JOIN public.event_tables() AS described ON found.table_name = described.table_name
    WHERE found.name = part;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    EXECUTE format('DROP TABLE IF EXISTS public.%I', 'arrived_' || part);
    EXECUTE format('CREATE TABLE public.%I (LIKE public.%I INCLUDING INDEXES)', 'arrived_' || part, part);
    -- Whoever calls this: the owner of the partition is who copies.
    EXECUTE (
        SELECT format('ALTER TABLE public.%I OWNER TO %I', 'arrived_' || part, pg_get_userbyid(relowner))
        FROM pg_class
        WHERE oid = format('public.%I', part)::regclass
    );
    EXECUTE format(
        'COMMENT ON TABLE public.%I IS %L',
        'arrived_' || part, format('What arrives in %s while retention decides whether to drop it.', part)
    );
    EXECUTE format(
        'CREATE OR REPLACE TRIGGER watched AFTER INSERT OR UPDATE OR DELETE ON public.%I '
        'FOR EACH ROW EXECUTE FUNCTION public.mirror_changes(%L, %L, %L)',
        part, 'arrived_' || part, key.time, key.id
    );
END
$$;
REVOKE EXECUTE ON FUNCTION watch_partition(text) FROM public;

COMMENT ON FUNCTION watch_partition(text) IS
'Has what arrives in a partition from now on be stored in a table beside it too, so that drop_partition can tell in a '
'moment whether anything did.';

CREATE FUNCTION unwatch_partition(part text)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, public, pg_temp
SET lock_timeout = '200ms'
SET client_min_messages = warning
AS $$
BEGIN
    IF to_regclass(format('public.%I', part)) IS NOT NULL THEN
        EXECUTE format('DROP TRIGGER IF EXISTS watched ON public.%I', part);
    END IF;
    EXECUTE format('DROP TABLE IF EXISTS public.%I', 'arrived_' || part);
END
$$;
REVOKE EXECUTE ON FUNCTION unwatch_partition(text) FROM public;

COMMENT ON FUNCTION unwatch_partition(text) IS 'Takes back what watch_partition did.';

CREATE FUNCTION drop_partition(part text, expired_before_ms bigint, is_dry_run boolean)
RETURNS TABLE (outcome text, stored bigint)
LANGUAGE plpgsql
SET search_path = pg_catalog, public, pg_temp
-- Writers queue behind whoever waits for a table: as long as this, at most.
SET lock_timeout = '200ms'
AS $$
DECLARE
    found record;
    first_arrival timestamptz;
    last_arrival timestamptz;
    is_written boolean;
BEGIN
    SELECT *
    INTO found
    FROM public.event_partitions() AS partitions
    WHERE partitions.name = part AND partitions.to_ms IS NOT NULL;
    stored := 0;
    outcome := CASE WHEN found.name IS NULL THEN 'deleted' WHEN found.to_ms > expired_before_ms THEN 'not_expired' END;
    IF outcome IS NOT NULL THEN
        RETURN NEXT;
        RETURN;
    END IF;

    -- Takes as long as it takes, and nobody waits for it.
    EXECUTE format('SELECT count(*), min(created_at), max(created_at) FROM public.%I', part)
    INTO stored, first_arrival, last_arrival;
    -- Nobody makes a hold between the look and the drop.
    LOCK TABLE legal_holds IN SHARE MODE;
    IF last_arrival >= to_timestamp(expired_before_ms / 1000.0) THEN
        outcome := 'arrived_later';
    ELSIF EXISTS (
        SELECT
        FROM legal_holds
        WHERE
            released_at IS NULL
            AND (
                (
                    (from_ms IS NULL OR from_ms < found.to_ms)
                    AND (to_ms IS NULL OR found.from_ms IS NULL OR to_ms > found.from_ms)
                )
                OR (
                    (from_ms IS NULL OR to_timestamp(from_ms / 1000.0) <= last_arrival)
                    AND (to_ms IS NULL OR to_timestamp(to_ms / 1000.0) > first_arrival)
                )
            )
    ) THEN
        outcome := 'held';
    ELSIF is_dry_run THEN
        outcome := 'expired';
    ELSE
        EXECUTE format('LOCK TABLE ONLY public.%I IN ACCESS EXCLUSIVE MODE', found.table_name);
        EXECUTE format('SELECT EXISTS (SELECT FROM public.%I)', 'arrived_' || part) INTO is_written;
        outcome := CASE WHEN is_written THEN 'arrived_later' ELSE 'dropped' END;
    END IF;
    IF outcome = 'dropped' THEN
        EXECUTE format('ALTER TABLE public.%I DETACH PARTITION public.%I', found.table_name, part);
        EXECUTE format('DROP TABLE public.%I, public.%I', part, 'arrived_' || part);
    END IF;
    RETURN NEXT;
END
$$;
REVOKE EXECUTE ON FUNCTION drop_partition(text, bigint, boolean) FROM public;

COMMENT ON FUNCTION drop_partition(text, bigint, boolean) IS
'Drops a partition that is watched when all its rows have expired, none arrived later, and none may be held.';
