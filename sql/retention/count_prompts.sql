-- Count expired prompts, for a look before they go.
--
-- from_ms    bigint  only of this time or later, epoch milliseconds
-- before_ms  bigint  older ones have expired, epoch milliseconds
--
-- Returns  one row: expired, held (of them)
-- Index    prompts_pkey
-- Load     operators only; reads every expired row
SELECT
    count(*) AS expired,
    count(*) FILTER (WHERE is_held(device_id, "timestamp")) AS held
FROM prompts
WHERE "timestamp" >= %(from_ms)s AND "timestamp" < %(before_ms)s;
