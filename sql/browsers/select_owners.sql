-- Find out which of the given browser instances belong to another device.
--
-- rows  json  array of objects, as upsert_instances takes them
--
-- Returns  a row for each given row whose instance belongs to another device: ord, outcome (instance_conflict)
-- Index    browser_instances_pkey
-- Load     only when devices of one set claim the same instance
WITH given AS (
    SELECT
        r.ord,
        r.instance_id,
        r.device_id
    FROM json_to_recordset(%(rows)s::json) AS r (ord int, instance_id text, device_id text)
    -- True of every row. The planner takes it for a sign of few, and so looks instances up by key.
    WHERE r.ord BETWEEN 0 AND 100000
)

SELECT
    given.ord,
    'instance_conflict' AS outcome
FROM given
INNER JOIN browser_instances ON given.instance_id = browser_instances.instance_id
WHERE browser_instances.device_id != given.device_id;
