-- Drop a partition whose rows have all expired and none of which may be held. A repeat finds it gone.
--
-- part               text    its name
-- expired_before_ms  bigint  older rows have expired, epoch milliseconds
--
-- Returns  one row: outcome (dropped | gone | not_expired | held: a hold is in force in its time)
-- Fails    by lock_not_available when somebody holds its table for longer than a moment; ask again
-- Locks    its table exclusively, for milliseconds; waits for that for 0.2 s
-- Load     operators only, one call an expired month
SELECT drop_partition(%(part)s, %(expired_before_ms)s) AS outcome;
