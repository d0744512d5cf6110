-- Loses nothing. Rows are judged by the client's time alone again.
DO $$
DECLARE
    watched record;
BEGIN
    FOR watched IN SELECT name FROM event_partitions() LOOP
        PERFORM unwatch_partition(watched.name);
    END LOOP;
END
$$;
DROP FUNCTION drop_partition(text, bigint, boolean);
DROP FUNCTION unwatch_partition(text);
DROP FUNCTION watch_partition(text);
DROP FUNCTION mirror_changes();
DROP FUNCTION delete_expired(text, bigint, bigint, text, uuid, int);
DROP FUNCTION count_expired(text, bigint);
DROP FUNCTION is_held(text, bigint, timestamptz);

COMMENT ON COLUMN legal_holds.from_ms IS
'Client clock of the rows, epoch milliseconds, included; null: from the first.';
COMMENT ON COLUMN legal_holds.to_ms IS 'Client clock of the rows, epoch milliseconds, excluded; null: for ever.';

CREATE FUNCTION is_held(row_device_id text, row_ms bigint)
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
        AND (from_ms IS NULL OR from_ms <= row_ms)
        AND (to_ms IS NULL OR to_ms > row_ms)
)
$$;
REVOKE EXECUTE ON FUNCTION is_held(text, bigint) FROM public;

CREATE FUNCTION drop_partition(part text, expired_before_ms bigint)
RETURNS text
LANGUAGE plpgsql
SET search_path = pg_catalog, public, pg_temp
-- Writers queue behind whoever waits for a table: as long as this, at most.
SET lock_timeout = '200ms'
AS $$
DECLARE
    parent text;
    bound text[];
BEGIN
    SELECT
        pg_inherits.inhparent::regclass::text,
        regexp_match(
            pg_get_expr(pg_class.relpartbound, pg_class.oid),
            $re$FROM \((?:MINVALUE|'(-?\d+)')\) TO \('(-?\d+)'\)$re$
        )
    INTO parent, bound
    FROM pg_class
    INNER JOIN pg_inherits ON pg_class.oid = pg_inherits.inhrelid
    WHERE
        pg_class.oid = to_regclass(format('public.%I', part))
        AND pg_inherits.inhparent::regclass::text IN ('prompts', 'extension_status', 'compliance_events');
    IF bound IS NULL THEN
        RETURN 'gone';
    ELSIF bound[2]::bigint > expired_before_ms THEN
        RETURN 'not_expired';
    END IF;

    -- Nobody makes a hold between the look and the drop.
    LOCK TABLE legal_holds IN SHARE MODE;
    IF EXISTS (
        SELECT
        FROM legal_holds
        WHERE
            released_at IS NULL
            AND (from_ms IS NULL OR from_ms < bound[2]::bigint)
            AND (to_ms IS NULL OR bound[1] IS NULL OR to_ms > bound[1]::bigint)
    ) THEN
        RETURN 'held';
    END IF;
    EXECUTE format('ALTER TABLE public.%I DETACH PARTITION public.%I', parent, part);
    EXECUTE format('DROP TABLE public.%I', part);
    RETURN 'dropped';
END
$$;
REVOKE EXECUTE ON FUNCTION drop_partition(text, bigint) FROM public;
