-- Compare prompts with the stored rows of the same keys. Changes nothing.
--
-- rows  json  array of objects, as insert_prompts takes them
--
-- Returns  a row for each input row whose key is stored: ordinal, created_at,
--          outcome (duplicate: same content | conflict: other content)
-- Index    prompts_pkey
-- Load     repeats only, in the same group commit
WITH input AS (
    SELECT *
    FROM json_to_recordset(%(rows)s::json) AS r (
        ordinal int, "timestamp" bigint, device_id text, prompt_id uuid, instance_id text, site text, url text,
        prompt text, browser_name text, browser_version text, profile_name text, username text, page_title text,
        conversation_id text, model text, action text, metadata jsonb
    )
    WHERE r.ordinal BETWEEN 0 AND 100000
)

SELECT
    input.ordinal,
    CASE
        -- Null-safe: two nulls are the same content.
        WHEN
            (input.instance_id IS NOT DISTINCT FROM prompts.instance_id)
            AND (input.site IS NOT DISTINCT FROM prompts.site)
            AND (input.url IS NOT DISTINCT FROM prompts.url)
            AND (input.prompt IS NOT DISTINCT FROM prompts.prompt)
            AND (input.browser_name IS NOT DISTINCT FROM prompts.browser_name)
            AND (input.browser_version IS NOT DISTINCT FROM prompts.browser_version)
            AND (input.profile_name IS NOT DISTINCT FROM prompts.profile_name)
            AND (input.username IS NOT DISTINCT FROM prompts.username)
            AND (input.page_title IS NOT DISTINCT FROM prompts.page_title)
            AND (input.conversation_id IS NOT DISTINCT FROM prompts.conversation_id)
            AND (input.model IS NOT DISTINCT FROM prompts.model)
            AND (input.action IS NOT DISTINCT FROM prompts.action)
            AND (input.metadata IS NOT DISTINCT FROM prompts.metadata)
            THEN 'duplicate'
        ELSE 'conflict'
    END AS outcome,
    prompts.created_at
FROM input
INNER JOIN prompts
    ON
        input."timestamp" = prompts."timestamp"
        AND input.device_id = prompts.device_id
        AND input.prompt_id = prompts.prompt_id;
