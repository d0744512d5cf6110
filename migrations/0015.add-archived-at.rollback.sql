-- Loses which devices and instances were archived; retention finds them again.
ALTER TABLE devices DROP COLUMN archived_at;
ALTER TABLE browser_instances DROP COLUMN archived_at;
