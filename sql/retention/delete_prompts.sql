-- Delete expired prompts, a page of the table at a time, oldest first; what is held stays. A repeat goes on where the
-- last one stopped.
--
-- before_ms     bigint  older ones have expired, epoch milliseconds
-- after_ms      bigint  the last row of the page before: its time,
-- after_device  text    its device
-- after_id      uuid    and its id
-- amount        integer rows a page
--
-- Returns  no row when nothing older is left, else one: changed (rows deleted), and the last row of the page as
--          after_ms, after_device, after_id
-- Index    prompts_pkey
-- Calls    is_held for each row of the page: looks holds up by legal_holds_device_id_idx
-- Locks    the rows that it deletes
-- Load     operators only, a transaction a page
WITH page AS (
    SELECT
        "timestamp" AS at_ms,
        device_id,
        prompt_id
    FROM prompts
    WHERE
        "timestamp" < %(before_ms)s
        AND "timestamp" >= %(after_ms)s
        AND ("timestamp", device_id, prompt_id) > (%(after_ms)s, %(after_device)s, %(after_id)s)
    ORDER BY "timestamp", device_id, prompt_id
    LIMIT %(amount)s
),

gone AS (
    DELETE FROM prompts
    USING page
    WHERE
        prompts."timestamp" = page.at_ms
        AND prompts.device_id = page.device_id
        AND prompts.prompt_id = page.prompt_id
        AND prompts."timestamp" < %(before_ms)s
        AND NOT is_held(prompts.device_id, prompts."timestamp")
    RETURNING 1
)

SELECT
    (SELECT count(*) FROM gone) AS changed,
    page.at_ms AS after_ms,
    page.device_id AS after_device,
    page.prompt_id AS after_id
FROM page
ORDER BY page.at_ms DESC, page.device_id DESC, page.prompt_id DESC
LIMIT 1;
