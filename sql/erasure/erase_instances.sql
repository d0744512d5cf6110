-- Blank the names and paths of browser profiles: of a device, or those that name a person; what is held stays. A repeat
-- finds nothing left to blank.
--
-- device_id  text  whose instances; or null: everybody's
-- username   text  name of the profile, or of a folder of its path; or null: any
--
-- Returns  a row for each instance that was blanked: instance_id
-- Index    browser_instances_device_id_idx, legal_holds_device_id_idx
-- Scans    browser_instances: when any device is searched for a person's name
-- Locks    the instances' rows
-- Load     operators only
UPDATE browser_instances
SET
    profile_name = NULL,
    profile_path = NULL
WHERE
    (%(device_id)s::text IS NULL OR browser_instances.device_id = %(device_id)s)
    AND (
        %(username)s::text IS NULL
        OR browser_instances.profile_name = %(username)s
        -- A folder of the path, as in /Users/anna/Library or C:\Users\anna.
        OR %(username)s = ANY(regexp_split_to_array(browser_instances.profile_path, '[/\\]'))
    )
    AND (browser_instances.profile_name IS NOT NULL OR browser_instances.profile_path IS NOT NULL)
    -- An instance has no time: a hold of its device, of whatever time, holds it.
    AND NOT EXISTS (
        SELECT FROM legal_holds
        WHERE legal_holds.device_id = browser_instances.device_id AND legal_holds.released_at IS NULL
    )
RETURNING instance_id;
