-- Browser instances: one row for each browser profile that has the extension.
-- Deploy before the code. Locks: none that anyone waits for; the table is new.
-- No foreign key to devices: each write would lock the device's row. No index on last_seen, so that heartbeats are HOT.
CREATE TABLE browser_instances (
    instance_id text PRIMARY KEY CHECK (instance_id ~ '^[!-~]{1,128}$'),
    device_id text NOT NULL,
    browser_name text,
    browser_version text,
    profile_name text,
    profile_path text,
    extension_id text,
    extension_version text,
    discovered_at bigint,
    created_at timestamptz NOT NULL DEFAULT now(),
    last_seen timestamptz
) WITH (fillfactor = 70);

COMMENT ON TABLE browser_instances IS 'Browser profiles in which the extension was found.';
COMMENT ON COLUMN browser_instances.instance_id IS 'Chosen by the extension.';
COMMENT ON COLUMN browser_instances.device_id IS 'The device that it belongs to; never changes.';
COMMENT ON COLUMN browser_instances.browser_name IS 'Such as chrome or firefox; null when only a heartbeat came.';
COMMENT ON COLUMN browser_instances.browser_version IS 'As the extension reports it.';
COMMENT ON COLUMN browser_instances.profile_name IS 'Name of the browser profile. Personal data.';
COMMENT ON COLUMN browser_instances.profile_path IS 'Folder of the browser profile. Personal data.';
COMMENT ON COLUMN browser_instances.extension_id IS 'The extension''s id in its browser.';
COMMENT ON COLUMN browser_instances.extension_version IS 'As the extension reports it.';
COMMENT ON COLUMN browser_instances.discovered_at IS 'Client clock, epoch milliseconds.';
COMMENT ON COLUMN browser_instances.created_at IS 'Database clock.';
COMMENT ON COLUMN browser_instances.last_seen IS 'Database clock; null before the first heartbeat. Never moves back.';
