-- Archiving: devices and browser instances that were not heard of for long. They stay, a revocation with them, and come
-- back by themselves when they are heard of again. No index: a heartbeat must stay HOT.
-- Deploy before the code. Locks: each table exclusively, for the moment that a column without a default takes.
ALTER TABLE devices ADD COLUMN archived_at timestamptz;
ALTER TABLE browser_instances ADD COLUMN archived_at timestamptz;

COMMENT ON COLUMN devices.archived_at IS 'Database clock; null while the device is heard of.';
COMMENT ON COLUMN browser_instances.archived_at IS 'Database clock; null while the instance is heard of.';
