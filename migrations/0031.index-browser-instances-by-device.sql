-- transactional: false
-- Browser instances by device: to count those of a device, and to list, erase and release them.
-- Deploy before the code. Locks: none that a reader or writer waits for. Heartbeats stay HOT: device_id changes only
-- when an instance moves.
CREATE INDEX CONCURRENTLY IF NOT EXISTS browser_instances_device_id_idx ON browser_instances (device_id);
