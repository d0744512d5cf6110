-- Compare given prompts with the stored rows of the same keys.
--
-- rows  json  array of objects, as insert_prompts takes them
--
-- Returns  a row for each given row whose key is stored: ord, created_at,
--          outcome (duplicate: same content | conflict: other content)
-- Index    prompts_pkey
-- Load     repeats only, in the same shared commit
WITH given AS (
    SELECT *
    FROM json_to_recordset(%(rows)s::json) AS r (
        ord int, "timestamp" bigint, device_id text, prompt_id uuid, instance_id text, site text, url text,
        prompt text, browser_name text, browser_version text, profile_name text, username text, page_title text,
        conversation_id text, model text, action text, metadata jsonb
    )
    WHERE r.ord BETWEEN 0 AND 100000
)

SELECT
    given.ord,
    CASE
        -- Null-safe: two nulls are the same content.
        WHEN
            (given.instance_id IS NOT DISTINCT FROM prompts.instance_id)
            AND (given.site IS NOT DISTINCT FROM prompts.site)
            AND (given.url IS NOT DISTINCT FROM prompts.url)
            AND (given.prompt IS NOT DISTINCT FROM prompts.prompt)
            AND (given.browser_name IS NOT DISTINCT FROM prompts.browser_name)
            AND (given.browser_version IS NOT DISTINCT FROM prompts.browser_version)
            AND (given.profile_name IS NOT DISTINCT FROM prompts.profile_name)
            AND (given.username IS NOT DISTINCT FROM prompts.username)
            AND (given.page_title IS NOT DISTINCT FROM prompts.page_title)
            AND (given.conversation_id IS NOT DISTINCT FROM prompts.conversation_id)
            AND (given.model IS NOT DISTINCT FROM prompts.model)
            AND (given.action IS NOT DISTINCT FROM prompts.action)
            AND (given.metadata IS NOT DISTINCT FROM prompts.metadata)
            THEN 'duplicate'
        ELSE 'conflict'
    END AS outcome,
    prompts.created_at
FROM given
INNER JOIN prompts
    ON
        given."timestamp" = prompts."timestamp"
        AND given.device_id = prompts.device_id
        AND given.prompt_id = prompts.prompt_id;
