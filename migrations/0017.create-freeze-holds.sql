-- freeze_holds: what retention and erasure call before they look at rows, in the same transaction. Without it a hold
-- that is made while a page is being deleted would be in force, and its rows gone a moment later.
-- Deploy before the code. Locks: none; the function is new.
CREATE FUNCTION freeze_holds()
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, public, pg_temp
AS $$
BEGIN
    -- Who makes a hold waits until the page is done; who comes after the hold sees it.
    LOCK TABLE legal_holds IN SHARE MODE;
    -- For the rest of the transaction: a row that somebody else has locked makes neither holds nor writers wait for long.
    PERFORM set_config('lock_timeout', '200ms', TRUE);
END
$$;
REVOKE EXECUTE ON FUNCTION freeze_holds() FROM public;

COMMENT ON FUNCTION freeze_holds() IS
'Has holds stay as they are until the transaction ends, which from now on waits for no row for more than 0.2 s.';
