-- Accept a client assertion once. A second use, by whichever worker, returns no row; a retry of the same use does.
--
-- device_id   text
-- jti         text
-- use_id      uuid  the request that uses it
-- expires_at  double precision  epoch seconds until which its use is stored
--
-- Returns  one row when this is the first use: jti
-- Index    client_assertions_pkey, client_assertions_expires_at_idx
-- Locks    the new row, and at most 10 expired rows that no other session is deleting
-- Load     one call for each access token that is asked for
WITH deleted AS (
    DELETE FROM client_assertions
    WHERE (device_id, jti) IN (
        SELECT
            expired.device_id,
            expired.jti
        FROM client_assertions AS expired
        -- The application's clock decides whether an assertion has expired, and may be behind the database's.
        WHERE expired.expires_at < now() - interval '5 minutes'
        ORDER BY expired.expires_at
        LIMIT 10
        FOR UPDATE SKIP LOCKED
    )
)

INSERT INTO client_assertions AS used (device_id, jti, use_id, expires_at)
VALUES (%(device_id)s, %(jti)s, %(use_id)s, to_timestamp(%(expires_at)s))
ON CONFLICT (device_id, jti) DO UPDATE SET use_id = excluded.use_id
    WHERE used.use_id = excluded.use_id
RETURNING jti;
