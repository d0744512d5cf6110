-- Find out which browser profiles that name a person are held.
--
-- device_id  text  whose instances; or null: everybody's
-- username   text  name of the profile, or of a folder of its path; or null: any
--
-- Returns  a row for each: instance_id
-- Index    browser_instances_device_id_idx, legal_holds_device_id_idx
-- Scans    browser_instances: when any device is searched for a person's name
-- Load     operators only, before an erasure, and only while there are holds
SELECT instance_id
FROM browser_instances
WHERE
    (%(device_id)s::text IS NULL OR browser_instances.device_id = %(device_id)s)
    AND (
        %(username)s::text IS NULL
        OR browser_instances.profile_name = %(username)s
        -- A folder of the path, as in /Users/anna/Library or C:\Users\anna.
        OR %(username)s = ANY(regexp_split_to_array(browser_instances.profile_path, '[/\\]'))
    )
    AND (browser_instances.profile_name IS NOT NULL OR browser_instances.profile_path IS NOT NULL)
    AND EXISTS (
        SELECT FROM legal_holds
        WHERE legal_holds.device_id = browser_instances.device_id AND legal_holds.released_at IS NULL
    );
