-- Delete used client assertions that expired minutes ago, the oldest first; a retry deletes those that are left.
--
-- after_time  timestamptz  only those that expired then or later: a run goes on where its last batch ended, so that it
--                          need not pass again what it has just deleted
-- amount      int          at most so many
--
-- Returns  one row: deleted; last_expires_at, null when nothing was deleted
-- Index    client_assertions_pkey, client_assertions_expires_at_idx
-- Locks    the rows that it deletes, and waits for nobody
-- Load     a batch a minute of one host, more while there are more
WITH expired AS (
    SELECT
        device_id,
        jti
    FROM client_assertions
    -- Whether an assertion has expired is decided by another machine's clock, which may be behind this one.
    WHERE expires_at >= %(after_time)s AND expires_at < now() - interval '5 minutes'
    ORDER BY expires_at
    LIMIT %(amount)s
    FOR UPDATE SKIP LOCKED
),

deleted AS (
    DELETE FROM client_assertions
    WHERE (device_id, jti) IN (SELECT expired.device_id, expired.jti FROM expired)
    RETURNING expires_at
)

SELECT
    count(*) AS deleted,
    max(expires_at) AS last_expires_at
FROM deleted;
