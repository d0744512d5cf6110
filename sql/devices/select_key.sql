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
    coalesce(devices.public_key_pem, %(nobodys_key)s) AS public_key_pem,
    devices.device_id IS NOT NULL AS is_known,
    devices.revoked_at IS NOT NULL AS is_revoked
FROM (VALUES (%(device_id)s)) AS asked (device_id)
LEFT JOIN devices
    ON asked.device_id = devices.device_id AND devices.public_key_pem IS NOT NULL;
