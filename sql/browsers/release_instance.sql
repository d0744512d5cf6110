-- Release a browser instance: any device may register it, until one does. A repeat keeps the first time.
--
-- instance_id  text
--
-- Returns  no row for an unknown instance, else: instance_id, device_id, released_at
-- Index    browser_instances_pkey
-- Locks    the instance's row
-- Load     operators only
UPDATE browser_instances
SET released_at = least(released_at, now())
WHERE instance_id = %(instance_id)s
RETURNING instance_id, device_id, released_at;
