-- Accept a client assertion once. A second use, by whichever worker, returns no row; a retry of the same use does.
--
-- device_id   text
-- jti         text
-- use_id      uuid  the request that uses it
-- expires_at  double precision  epoch seconds until which it must be remembered
--
-- Returns  one row when this is the first use: jti
-- Index    client_assertions_pkey
-- Locks    the new row
-- Load     one call for each access token that is asked for
INSERT INTO client_assertions AS used (device_id, jti, use_id, expires_at)
VALUES (%(device_id)s, %(jti)s, %(use_id)s, to_timestamp(%(expires_at)s))
ON CONFLICT (device_id, jti) DO UPDATE SET use_id = excluded.use_id
    WHERE used.use_id = excluded.use_id
RETURNING jti;
