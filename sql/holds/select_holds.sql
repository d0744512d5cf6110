-- List the holds, those in force first, newest first.
--
-- Returns  hold_id, device_id, from_ms, to_ms, reason, created_at, released_at
-- Scans    legal_holds: all are listed, some tens of rows
-- Load     operators only
SELECT
    hold_id,
    device_id,
    from_ms,
    to_ms,
    reason,
    created_at,
    released_at
FROM legal_holds
ORDER BY released_at IS NOT NULL ASC, created_at DESC, hold_id ASC;
