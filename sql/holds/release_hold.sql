-- Release a hold. A repeat keeps the first time.
--
-- hold_id  uuid
--
-- Returns  no row when there is none, else: hold_id, released_at
-- Index    legal_holds_pkey
-- Locks    the hold's row
-- Load     operators only
UPDATE legal_holds
SET released_at = coalesce(released_at, now())
WHERE hold_id = %(hold_id)s
RETURNING hold_id, released_at;
