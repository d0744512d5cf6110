-- Find out whether something of a person's is held, a page of the table at a time.
--
-- device_id     text    whose rows; or null: everybody's
-- username      text    whose rows; or null: everybody's
-- after_ms      bigint  the last row of the page before: its time,
-- after_device  text    its device
-- after_id      uuid    and its id
-- amount        integer rows a page
--
-- Returns  no row at the end of the table, else one: changed (rows of the page that are held), and the last row of the
--          page as after_ms, after_device, after_id
-- Index    extension_status_pkey
-- Calls    is_held for each row of whom it is about: looks holds up by legal_holds_device_id_idx
-- Load     operators only, before an erasure, and only while there are holds
WITH page AS (
    SELECT
        reported_at AS at_ms,
        device_id,
        status_id
    FROM extension_status
    WHERE
        reported_at >= %(after_ms)s
        AND (reported_at, device_id, status_id) > (%(after_ms)s, %(after_device)s, %(after_id)s)
    ORDER BY reported_at, device_id, status_id
    LIMIT %(amount)s
),

held AS (
    SELECT page.at_ms
    FROM page
    INNER JOIN extension_status
        ON
            page.at_ms = extension_status.reported_at
            AND page.device_id = extension_status.device_id
            AND page.status_id = extension_status.status_id
    WHERE
        extension_status.erased_at IS NULL
        AND (%(device_id)s::text IS NULL OR extension_status.device_id = %(device_id)s)
        AND (
            %(username)s::text IS NULL
            OR extension_status.reported_by = %(username)s
            -- The name itself, or something in it.
            OR jsonb_path_exists(
                extension_status.metadata, '$.** ? (@ == $name)', jsonb_build_object('name', %(username)s::text)
            )
        )
        AND is_held(extension_status.device_id, extension_status.reported_at)
)

SELECT
    (SELECT count(*) FROM held) AS changed,
    page.at_ms AS after_ms,
    page.device_id AS after_device,
    page.status_id AS after_id
FROM page
ORDER BY page.at_ms DESC, page.device_id DESC, page.status_id DESC
LIMIT 1;
