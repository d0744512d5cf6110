-- List the event tables: those whose rows expire.
--
-- Returns  a row for each, by name: table_name
-- Calls    event_tables, once: looks at the catalogs
-- Load     operators only
SELECT table_name
FROM event_tables()
ORDER BY table_name;
