-- Find the input's browser instances that belong to another device. Changes nothing.
--
-- rows  json  array of objects, as upsert_instances takes them
--
-- Returns  a row for each input row whose instance belongs to another device: ordinal, outcome (instance_conflict)
-- Index    browser_instances_pkey
-- Load     only when devices of one batch claim the same instance
WITH input AS (
    SELECT
        r.ordinal,
        r.instance_id,
        r.device_id
    FROM json_to_recordset(%(rows)s::json) AS r (ordinal int, instance_id text, device_id text)
    -- Always true. It lowers the row estimate: without it, a batch scans instances instead of using the index.
    WHERE r.ordinal BETWEEN 0 AND 100000
)

SELECT
    input.ordinal,
    'instance_conflict' AS outcome
FROM input
INNER JOIN browser_instances ON input.instance_id = browser_instances.instance_id
WHERE browser_instances.device_id != input.device_id;
