-- Say how the server is set.
--
-- Returns  a row for each setting that this role may see, by name: name, value (with its unit),
--          needs_restart
-- Scans    system catalogs: the server's some hundreds of settings
-- Load     operators only
SELECT
    name,
    current_setting(name) AS value,
    context = 'postmaster' AS needs_restart
FROM pg_settings
ORDER BY name;
