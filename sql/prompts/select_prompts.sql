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
            EXISTS (
                SELECT
                    given.instance_id,
                    given.site,
                    given.url,
                    given.prompt,
                    given.browser_name,
                    given.browser_version,
                    given.profile_name,
                    given.username,
                    given.page_title,
                    given.conversation_id,
                    given.model,
                    given.action,
                    given.metadata
                INTERSECT
                SELECT
                    prompts.instance_id,
                    prompts.site,
                    prompts.url,
                    prompts.prompt,
                    prompts.browser_name,
                    prompts.browser_version,
                    prompts.profile_name,
                    prompts.username,
                    prompts.page_title,
                    prompts.conversation_id,
                    prompts.model,
                    prompts.action,
                    prompts.metadata
            )
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
