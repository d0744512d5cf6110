-- The public key of one device, to verify what it signed.
--
-- device_id  text
--
-- Returns  no row or one: public_key_pem, key_thumbprint, revoked_at
-- Index    devices_pkey
-- Load     one call for each access token that is asked for
SELECT
    public_key_pem,
    key_thumbprint,
    revoked_at
FROM devices
WHERE device_id = %(device_id)s AND public_key_pem IS NOT NULL;
