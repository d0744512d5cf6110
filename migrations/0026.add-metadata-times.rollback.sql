-- Loses when metadata was observed: a replayed spool may overwrite newer metadata once.
DROP FUNCTION is_outdated(timestamptz, timestamptz);
ALTER TABLE devices
DROP COLUMN hostname_at,
DROP COLUMN macs_at,
DROP COLUMN ips_at,
DROP COLUMN os_at,
DROP COLUMN browsers_at;
ALTER TABLE browser_instances
DROP COLUMN browser_name_at,
DROP COLUMN browser_version_at,
DROP COLUMN profile_name_at,
DROP COLUMN profile_path_at,
DROP COLUMN extension_id_at,
DROP COLUMN extension_version_at;
