-- Blank the names and paths of browser profiles: of a device, or those that are called like a person.
--
-- device_id  text  whose instances; or null: everybody's
-- username   text  name of the profile; or null: any
--
-- Returns  a row for each instance that was blanked: instance_id
-- Scans    browser_instances: no index leads to a device's instances, since a heartbeat must not touch one
-- Locks    the instances' rows
-- Load     operators only
UPDATE browser_instances
SET
    profile_name = NULL,
    profile_path = NULL
WHERE
    (%(device_id)s::text IS NULL OR device_id = %(device_id)s)
    AND (%(username)s::text IS NULL OR profile_name = %(username)s)
    AND (profile_name IS NOT NULL OR profile_path IS NOT NULL)
RETURNING instance_id;
