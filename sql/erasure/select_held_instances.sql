-- Find out which browser profiles that name a person are held.
--
-- device_id  text  whose instances; or null: everybody's
-- username   text  name of the profile, or of a folder of its path; or null: any
--
-- Returns  a row for each: instance_id
-- Index    browser_instances_device_id_idx
-- Scans    browser_instances: a person's profiles may be on any device
-- Calls    is_about, is_device_held for each instance: the latter looks holds up by legal_holds_device_id_idx
-- Load     operators only, before an erasure, and only while there are holds
SELECT instance_id
FROM browser_instances
WHERE
    is_about(browser_instances, %(device_id)s::text, %(username)s::text)
    AND is_device_held(browser_instances.device_id);
