-- Loses which instances were released and which devices erased: operators release them again.
ALTER TABLE devices DROP COLUMN erased_at;
ALTER TABLE browser_instances DROP COLUMN released_at;
COMMENT ON COLUMN browser_instances.device_id IS 'The device that it belongs to; never changes.';
