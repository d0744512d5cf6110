-- List a page of browser instances by id, for the operator's command line. Changes nothing.
--
-- after   text     the last instance_id of the page before; empty for the first page
-- amount  integer  rows a page
--
-- Returns  instance_id, device_id, browser_name, extension_version, created_at, last_seen, archived_at, released_at
-- Index    browser_instances_pkey
-- Load     operators only
SELECT
    instance_id,
    device_id,
    browser_name,
    extension_version,
    created_at,
    last_seen,
    archived_at,
    released_at
FROM browser_instances
WHERE instance_id > %(after)s
ORDER BY instance_id
LIMIT %(amount)s;
