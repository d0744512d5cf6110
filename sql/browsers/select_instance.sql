-- Show one browser instance. Changes nothing.
--
-- instance_id  text
--
-- Returns  no row or one: every column but the times of the metadata
-- Index    browser_instances_pkey
-- Load     operators only
SELECT
    instance_id,
    device_id,
    browser_name,
    browser_version,
    profile_name,
    profile_path,
    extension_id,
    extension_version,
    discovered_at,
    created_at,
    last_seen,
    archived_at,
    released_at
FROM browser_instances
WHERE instance_id = %(instance_id)s;
