-- Have holds stay as they are until the transaction ends: what is deleted or blanked in it was not held.
--
-- Returns  one row, of nothing that counts
-- Fails    by lock_not_available when a hold is being made for longer than a moment; ask again
-- Calls    freeze_holds, once: locks legal_holds, and reads no row
-- Locks    legal_holds against changes; later waits of the transaction for 0.2 s at most
-- Load     operators only, one call a page
SELECT freeze_holds() AS frozen;
