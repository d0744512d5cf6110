-- Blank what a person's prompts say, a page of the table at a time; what is held stays. A repeat finds nothing
-- left to blank.
--
-- device_id     text    whose rows; or null: everybody's
-- username      text    whose rows; or null: everybody's
-- after_ms      bigint  the last row of the page before: its time,
-- after_device  text    its device
-- after_id      uuid    and its id
-- amount        integer rows a page
--
-- Returns  no row at the end of the table, else one: changed (rows blanked), and the last row of the page as
--          after_ms, after_device, after_id
-- Index    prompts_pkey
-- Calls    is_about, is_held for each row of the page: the latter looks holds up by legal_holds_device_id_idx
-- Locks    the rows that it blanks
-- Load     operators only, a transaction a page: no index leads to a person's rows, since every write would pay for it
WITH page AS (
    SELECT
        "timestamp" AS at_ms,
        device_id,
        prompt_id
    FROM prompts
    WHERE
        "timestamp" >= %(after_ms)s
        AND ("timestamp", device_id, prompt_id) > (%(after_ms)s, %(after_device)s, %(after_id)s)
    ORDER BY "timestamp", device_id, prompt_id
    LIMIT %(amount)s
),

erased AS (
    UPDATE prompts
    SET
        prompt = '',
        url = '',
        page_title = NULL,
        username = NULL,
        profile_name = NULL,
        conversation_id = NULL,
        metadata = NULL,
        erased_at = now()
    FROM page
    WHERE
        prompts."timestamp" = page.at_ms
        AND prompts.device_id = page.device_id
        AND prompts.prompt_id = page.prompt_id
        AND prompts.erased_at IS NULL
        AND is_about(prompts, %(device_id)s::text, %(username)s::text)
        AND NOT is_held(prompts.device_id, prompts."timestamp", prompts.created_at)
    RETURNING 1
)

SELECT
    (SELECT count(*) FROM erased) AS changed,
    page.at_ms AS after_ms,
    page.device_id AS after_device,
    page.prompt_id AS after_id
FROM page
ORDER BY page.at_ms DESC, page.device_id DESC, page.prompt_id DESC
LIMIT 1;
