-- transactional: false
-- Browser instances by their device: erasure, retention and lists ask for those of one. A heartbeat changes no indexed
-- column, so it stays HOT.
-- Deploy before the code or after it. Locks: none that anyone waits for; it waits itself for transactions that write.
-- What a run that was killed has left is of no use.
DROP INDEX CONCURRENTLY IF EXISTS browser_instances_device_id_idx;
-- This file has no transaction.
-- squawk-ignore ban-concurrent-index-creation-in-transaction
CREATE INDEX CONCURRENTLY browser_instances_device_id_idx ON browser_instances (device_id);
