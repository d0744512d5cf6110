-- Read the public key of one device, to verify what it signed. Changes nothing. Unknown devices get a dummy key, so
-- that refusal takes equally long and timing does not tell which devices exist.
--
-- device_id  text
-- dummy_key  text  the key that comes back for an unknown device
--
-- Returns  one row: public_key_pem, is_known, is_revoked
-- Index    devices_pkey
-- Load     one call for each access token that is asked for
SELECT
    coalesce(max(public_key_pem), %(dummy_key)s) AS public_key_pem,
    count(*) = 1 AS is_known,
    count(revoked_at) = 1 AS is_revoked
FROM devices
WHERE device_id = %(device_id)s AND public_key_pem IS NOT NULL;
