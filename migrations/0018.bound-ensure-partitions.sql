-- ensure_partitions: for ten years ahead at most. The service's role may call it, and a fault there could otherwise
-- make partitions without end.
-- Deploy before the code. Locks: none; who calls it in between is refused, and comes again.
-- Whoever calls the name finds the next function, in the same transaction.
-- squawk-ignore renaming-object
ALTER FUNCTION ensure_partitions(int, bigint) RENAME TO make_partitions;

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
