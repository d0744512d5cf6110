-- Blank the names and paths of browser profiles: of a device, or those that name a person; what is held stays. A repeat
-- finds nothing left to blank.
--
-- device_id  text  whose instances; or null: everybody's
-- username   text  name of the profile, or of a folder of its path; or null: any
--
-- Returns  a row for each instance that was blanked: instance_id
-- Index    browser_instances_device_id_idx
-- Scans    browser_instances: a person's profiles may be on any device
-- Calls    is_about, is_device_held for each instance: the latter looks holds up by legal_holds_device_id_idx
-- Locks    the instances' rows
-- Load     operators only
UPDATE browser_instances
SET
    profile_name = NULL,
    profile_path = NULL
WHERE
    is_about(browser_instances, %(device_id)s::text, %(username)s::text)
    AND NOT is_device_held(browser_instances.device_id)
RETURNING instance_id;
