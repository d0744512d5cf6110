-- Archive instances of which nothing arrived for long, a page of the table at a time. A repeat finds nothing to
-- archive.
--
-- after      text    the last instance_id of the page before; empty for the first page
-- seconds    bigint  nothing of it arrived for so long
-- amount     integer rows a page
--
-- Returns  no row at the end of the table, else one: changed (rows archived), and the last instance_id of the page as
--          after
-- Index    browser_instances_pkey
-- Calls    is_silent for each row of the page: looks at the row alone, at no other
-- Locks    the rows that it archives
-- Load     operators only, a transaction a page
WITH page AS (
    SELECT instance_id
    FROM browser_instances
    WHERE instance_id > %(after)s
    ORDER BY instance_id
    LIMIT %(amount)s
),

archived AS (
    UPDATE browser_instances
    SET archived_at = now()
    FROM page
    WHERE
        browser_instances.instance_id = page.instance_id
        AND is_silent(browser_instances, %(seconds)s)
    RETURNING 1
)

SELECT
    (SELECT count(*) FROM archived) AS changed,
    max(page.instance_id) AS after
FROM page
HAVING count(*) > 0;
