-- Record captured prompts. A retry stores nothing new: its row comes back without an outcome.
--
-- rows  json  array of objects; fields and types are those of `given`; ord counts from 0
--
-- Returns  a row for each given row whose device is known: ord, created_at,
--          outcome (created | device_revoked | null: the key was there before, or twice in the set; select_prompts
--          tells)
-- Index    devices_pkey, browser_instances_pkey, prompts_pkey
-- Locks    the new rows, in key order; of devices and instances without a heartbeat for an hour their rows
-- Load     one call a shared commit, 1 to 1,000 rows
WITH given AS (
    SELECT *
    FROM json_to_recordset(%(rows)s::json) AS r (
        ord int, "timestamp" bigint, device_id text, prompt_id uuid, instance_id text, site text, url text,
        prompt text, browser_name text, browser_version text, profile_name text, username text, page_title text,
        conversation_id text, model text, action text, metadata jsonb
    )
    -- True of every row. The planner takes it for a sign of few, and so looks devices up by key.
    WHERE r.ord BETWEEN 0 AND 100000
),

known AS (
    SELECT
        given.*,
        devices.revoked_at,
        devices.archived_at IS NOT NULL
        OR greatest(devices.last_heartbeat, devices.last_report) < now() - interval '1 hour' AS is_due,
        devices.instances_watched_at,
        row_number() OVER (
            PARTITION BY given."timestamp", given.device_id, given.prompt_id ORDER BY given.ord
        ) AS turn
    FROM given
    INNER JOIN devices ON given.device_id = devices.device_id
),

stored AS (
    INSERT INTO prompts (
        "timestamp", device_id, prompt_id, instance_id, site, url, prompt, browser_name, browser_version,
        profile_name, username, page_title, conversation_id, model, action, metadata
    )
    SELECT
        "timestamp", device_id, prompt_id, instance_id, site, url, prompt, browser_name, browser_version,
        profile_name, username, page_title, conversation_id, model, action, metadata
    FROM known
    WHERE revoked_at IS NULL AND turn = 1
    ORDER BY "timestamp", device_id, prompt_id
    ON CONFLICT DO NOTHING
    RETURNING "timestamp", device_id, prompt_id
),

-- A report is a sign of life: noted once an hour at most, while no heartbeat is. It brings back what was archived.
heard_devices AS (
    UPDATE devices
    SET
        last_report = now(),
        archived_at = NULL
    FROM (
        SELECT DISTINCT device_id
        FROM known
        WHERE is_due AND revoked_at IS NULL
        ORDER BY device_id
    ) AS due
    WHERE devices.device_id = due.device_id
),

heard_instances AS (
    UPDATE browser_instances
    SET
        last_report = now(),
        archived_at = NULL
    FROM (
        SELECT DISTINCT
            instance_id,
            device_id
        FROM known
        WHERE instances_watched_at IS NOT NULL AND revoked_at IS NULL
        ORDER BY instance_id
    ) AS named
    WHERE
        browser_instances.instance_id = named.instance_id
        -- Without the operator it would be looked up by its device, which may have hundreds.
        AND browser_instances.device_id || '' = named.device_id
        AND (
            browser_instances.archived_at IS NOT NULL
            OR greatest(browser_instances.last_seen, browser_instances.last_report) < now() - interval '1 hour'
        )
)

SELECT
    known.ord,
    CASE
        WHEN known.revoked_at IS NOT NULL THEN 'device_revoked'
        WHEN
            known.turn = 1
            AND (known."timestamp", known.device_id, known.prompt_id) IN (
                SELECT stored."timestamp", stored.device_id, stored.prompt_id FROM stored
            )
            THEN 'created'
    END AS outcome,
    now() AS created_at
FROM known;
