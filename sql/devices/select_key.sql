-- The public key of one device, to verify what it signed. One that there is not comes back alike, with a key that
-- nobody has: who measures how long a refusal takes must not learn which devices exist.
--
-- device_id    text
-- nobodys_key  text  the key of a device that there is not
--
-- Returns  one row: public_key_pem, is_known, is_revoked
-- Index    devices_pkey
-- Load     one call for each access token that is asked for
SELECT
    coalesce(max(public_key_pem), %(nobodys_key)s) AS public_key_pem,
    count(*) = 1 AS is_known,
    count(revoked_at) = 1 AS is_revoked
FROM devices
WHERE device_id = %(device_id)s AND public_key_pem IS NOT NULL;
