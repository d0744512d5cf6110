-- Note no more what arrives in a partition, since it was not dropped. A repeat changes nothing.
--
-- part  text  its name
--
-- Returns  one row, of nothing that counts
-- Fails    by lock_not_available when somebody uses the partition for longer than a moment; the next run does it
-- Calls    unwatch_partition, once: drops a table and a trigger
-- Locks    the partition exclusively, for milliseconds; waits for that for 0.2 s
-- Load     operators only, one call an expired month that stays
SELECT unwatch_partition(%(part)s) AS unwatched;
