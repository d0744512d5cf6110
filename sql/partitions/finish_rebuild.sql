-- Put the partitions that were made beside an event table in the place of its default partition.
--
-- table_name  text    the event table
-- rebuild     bigint  what begin_rebuild returned, of which every page is copied
--
-- Returns  a row for each month: name, moved (about how many rows came from the old default partition); none when
--          another rebuild has begun
-- Fails    by lock_not_available when somebody uses the table for longer than a moment; ask again
-- Calls    finish_rebuild, once: counts the rows of the old and the new default partition while nobody waits
-- Locks    an advisory lock; the table exclusively, for milliseconds; waits for that for 0.1 s
-- Load     once, after the last page
SELECT
    name,
    moved
FROM finish_rebuild(%(table_name)s, %(rebuild)s)
ORDER BY name;
