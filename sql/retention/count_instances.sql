-- Count instances that were not heard of for long and are not archived yet.
--
-- seconds  bigint  not heard of for so long
--
-- Returns  one row: expired
-- Scans    browser_instances: no index leads to them, since a heartbeat must not touch one
-- Load     operators only
SELECT count(*) AS expired
FROM browser_instances
WHERE
    archived_at IS NULL
    AND greatest(last_seen, created_at) < now() - %(seconds)s * interval '1 second';
