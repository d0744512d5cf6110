-- Drop a partition that is watched, whose rows have all expired and none of which may be held. A repeat finds it
-- deleted.
--
-- part               text     its name
-- expired_before_ms  bigint   rows whose two times are both older have expired, epoch milliseconds
-- is_dry_run         boolean  only say what would happen
--
-- Returns  one row: outcome (dropped | deleted: before | not_expired | arrived_later: a row that has not expired |
--          held: a hold is in force that may cover a row | expired: it would be dropped), stored (rows in it)
-- Fails    by lock_not_available when somebody holds its table for longer than a moment; ask again
-- Calls    drop_partition, once: reads the partition from end to end, and looks at legal_holds
-- Locks    its table exclusively, for milliseconds; waits for that for 0.2 s
-- Load     operators only, one call an expired month
SELECT
    outcome,
    stored
FROM drop_partition(%(part)s, %(expired_before_ms)s, %(is_dry_run)s);
