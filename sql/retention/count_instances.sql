-- Count instances of which nothing arrived for long and are not archived yet.
--
-- seconds  bigint  nothing of it arrived for so long
--
-- Returns  one row: expired
-- Scans    browser_instances: no index leads to them, since a heartbeat must not touch one
-- Calls    is_silent for each row: looks at the row alone, at no other
-- Load     operators only
SELECT count(*) AS expired
FROM browser_instances
WHERE is_silent(browser_instances, %(seconds)s);
