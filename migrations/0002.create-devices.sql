-- Devices: one row for each agent, its public key and when it was last heard.
-- Deploy before the code. Locks: none that anyone waits for; the table is new.
-- The fill factor leaves room on each page, so that a heartbeat's new row version stays on it (HOT) and no index is
-- touched. For the same reason last_heartbeat has no index.
CREATE TABLE devices (
    device_id text PRIMARY KEY CHECK (device_id ~ '^[!-~]{1,128}$'),
    public_key_pem text,
    key_thumbprint text CONSTRAINT devices_key_thumbprint_key UNIQUE,
    hostname text,
    macs text[],
    ips text[],
    os jsonb,
    browsers jsonb,
    registered_at timestamptz NOT NULL DEFAULT now(),
    last_heartbeat timestamptz,
    revoked_at timestamptz
) WITH (fillfactor = 70);

COMMENT ON TABLE devices IS 'Laptops whose agent has registered, or has sent a heartbeat after its row was deleted.';
COMMENT ON COLUMN devices.device_id IS 'Chosen by the agent. Identifies a device, so indirectly a person.';
COMMENT ON COLUMN devices.public_key_pem IS
'SubjectPublicKeyInfo of the device''s key; null: any enrolment may set a new one, if key_thumbprint is null too.';
COMMENT ON COLUMN devices.key_thumbprint IS
'RFC 7638 SHA-256 thumbprint of the key, base64url; null after the key was forgotten.';
COMMENT ON COLUMN devices.hostname IS 'As the agent reports it. May name a person.';
COMMENT ON COLUMN devices.macs IS 'MAC addresses as the agent reports them. Personal data.';
COMMENT ON COLUMN devices.ips IS 'IP addresses as the agent reports them. Personal data.';
COMMENT ON COLUMN devices.os IS 'Operating system, a string or an object, as the agent reports it.';
COMMENT ON COLUMN devices.browsers IS 'Installed browsers, a list of strings or objects, as the agent reports them.';
COMMENT ON COLUMN devices.registered_at IS 'Agent clock when the agent gave a time, else database clock.';
COMMENT ON COLUMN devices.last_heartbeat IS 'Database clock; null before the first heartbeat. Never moves back.';
COMMENT ON COLUMN devices.revoked_at IS 'Database clock; null while the device may write.';
