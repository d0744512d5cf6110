-- Blank what a person's statuses say, a page of the table at a time; what is held stays. A repeat finds nothing
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
-- Index    extension_status_pkey
-- Calls    is_about, is_held for each row of the page: the latter looks holds up by legal_holds_device_id_idx
-- Locks    the rows that it blanks
-- Load     operators only, a transaction a page: no index leads to a person's rows, since every write would pay for it
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

erased AS (
    UPDATE extension_status
    SET
        metadata = NULL,
        erased_at = now(),
        -- Anything else is the id of somebody.
        reported_by = CASE
            WHEN extension_status.reported_by IN ('agent', 'extension') THEN extension_status.reported_by
        END
    FROM page
    WHERE
        extension_status.reported_at = page.at_ms
        AND extension_status.device_id = page.device_id
        AND extension_status.status_id = page.status_id
        AND extension_status.erased_at IS NULL
        AND is_about(extension_status, %(device_id)s::text, %(username)s::text)
        AND NOT is_held(extension_status.device_id, extension_status.reported_at, extension_status.created_at)
    RETURNING 1
)

SELECT
    (SELECT count(*) FROM erased) AS changed,
    page.at_ms AS after_ms,
    page.device_id AS after_device,
    page.status_id AS after_id
FROM page
ORDER BY page.at_ms DESC, page.device_id DESC, page.status_id DESC
LIMIT 1;
