-- transactional: false
-- Loses nothing.
DROP INDEX CONCURRENTLY IF EXISTS browser_instances_device_id_idx;
