-- drop_partition: what retention calls for a month whose rows have all expired. DETACH ... CONCURRENTLY would lock
-- less, but PostgreSQL refuses it where there is a default partition; so this waits for the table's lock for a moment
-- only, and its caller comes again.
-- Deploy before the code. Locks: none; the function is new.
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
