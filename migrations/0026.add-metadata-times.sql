-- Metadata of devices and browsers: when each field was observed, so that a replayed spool does not overwrite what is
-- newer. No index: a heartbeat must stay HOT.
-- Deploy before the code. Locks: each table exclusively, for the moment that columns without a default take.
ALTER TABLE devices
ADD COLUMN hostname_at timestamptz,
ADD COLUMN macs_at timestamptz,
ADD COLUMN ips_at timestamptz,
ADD COLUMN os_at timestamptz,
ADD COLUMN browsers_at timestamptz;
ALTER TABLE browser_instances
ADD COLUMN browser_name_at timestamptz,
ADD COLUMN browser_version_at timestamptz,
ADD COLUMN profile_name_at timestamptz,
ADD COLUMN profile_path_at timestamptz,
ADD COLUMN extension_id_at timestamptz,
ADD COLUMN extension_version_at timestamptz;

COMMENT ON COLUMN devices.hostname_at IS
'When hostname was observed: client clock, at most the database''s; the arrival when the client gave no time.';
COMMENT ON COLUMN devices.macs_at IS 'When macs was observed, as hostname_at.';
COMMENT ON COLUMN devices.ips_at IS 'When ips was observed, as hostname_at.';
COMMENT ON COLUMN devices.os_at IS 'When os was observed, as hostname_at.';
COMMENT ON COLUMN devices.browsers_at IS 'When browsers was observed, as hostname_at.';
COMMENT ON COLUMN browser_instances.browser_name_at IS
'When browser_name was observed: client clock, at most the database''s; the arrival when the client gave no time.';
COMMENT ON COLUMN browser_instances.browser_version_at IS 'When browser_version was observed, as browser_name_at.';
COMMENT ON COLUMN browser_instances.profile_name_at IS 'When profile_name was observed, as browser_name_at.';
COMMENT ON COLUMN browser_instances.profile_path_at IS 'When profile_path was observed, as browser_name_at.';
COMMENT ON COLUMN browser_instances.extension_id_at IS 'When extension_id was observed, as browser_name_at.';
COMMENT ON COLUMN browser_instances.extension_version_at IS 'When extension_version was observed, as browser_name_at.';

-- What is observed now is never outdated, even where a clock that was wrong left a stored time in the future.
CREATE FUNCTION is_outdated(observed timestamptz, stored timestamptz) RETURNS boolean
LANGUAGE sql STABLE PARALLEL SAFE
RETURN observed < stored AND observed < now();

COMMENT ON FUNCTION is_outdated(timestamptz, timestamptz) IS
'Whether metadata was observed before the stored metadata; null when either time is not known.';
REVOKE EXECUTE ON FUNCTION is_outdated(timestamptz, timestamptz) FROM public;
