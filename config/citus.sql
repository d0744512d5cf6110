-- Spreads the tables over the machines of a Citus cluster. Run it on the coordinator, as a superuser, after
-- `flask migrate` and config/roles.sql; running it again changes nothing. Then start the service as ever, with the
-- coordinator's address. Written for Citus 12 and 13, and never needed without Citus.
--
-- Devices and what they report are spread by device_id: what one device sends is stored on one machine, and a
-- statement that looks a device up and stores its rows stays there. Time is part of every event table's key, so their
-- monthly partitions are spread with them, new ones too.
--
-- On the coordinator alone, since no statement joins them with others or they are small and seldom written:
-- local tables: client_assertions, migration_checksums, audit_log

-- A key belongs to one device. Citus can't enforce this where rows are spread by something else, so the constraint
-- becomes an index. The register statement takes its place: it locks the enrolments before it looks for the key, and
-- Citus locks a reference table as a whole, so registrations go one after another.
ALTER TABLE devices DROP CONSTRAINT IF EXISTS devices_key_thumbprint_key;
CREATE INDEX IF NOT EXISTS devices_key_thumbprint_idx ON devices (key_thumbprint);

-- On every machine.
SELECT create_reference_table('enrollments')
WHERE NOT EXISTS (SELECT FROM citus_tables WHERE table_name = 'enrollments'::regclass);

-- Joined by is_held(), which runs where the rows are.
SELECT create_reference_table('legal_holds')
WHERE NOT EXISTS (SELECT FROM citus_tables WHERE table_name = 'legal_holds'::regclass);
SELECT create_distributed_function('is_held(text, bigint, timestamptz)');

SELECT create_distributed_table('devices', 'device_id')
WHERE NOT EXISTS (SELECT FROM citus_tables WHERE table_name = 'devices'::regclass);

SELECT create_distributed_table('prompts', 'device_id', colocate_with := 'devices')
WHERE NOT EXISTS (SELECT FROM citus_tables WHERE table_name = 'prompts'::regclass);

SELECT create_distributed_table('extension_status', 'device_id', colocate_with := 'devices')
WHERE NOT EXISTS (SELECT FROM citus_tables WHERE table_name = 'extension_status'::regclass);

SELECT create_distributed_table('compliance_events', 'device_id', colocate_with := 'devices')
WHERE NOT EXISTS (SELECT FROM citus_tables WHERE table_name = 'compliance_events'::regclass);

SELECT create_distributed_table('conflict_notices', 'device_id', colocate_with := 'devices')
WHERE NOT EXISTS (SELECT FROM citus_tables WHERE table_name = 'conflict_notices'::regclass);

-- Called where heartbeats and registrations are stored.
SELECT create_distributed_function('is_outdated(timestamptz, timestamptz)');

-- By its own id: an instance belongs to one device, whichever claims it first.
SELECT create_distributed_table('browser_instances', 'instance_id', colocate_with := 'none')
WHERE NOT EXISTS (SELECT FROM citus_tables WHERE table_name = 'browser_instances'::regclass);
