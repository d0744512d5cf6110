-- Who may do what. Applied after the migrations, whenever one was applied or this file has changed; running it again
-- changes nothing. A partition needs no grant: whoever may use its table reaches it through that.
--
-- The writer may do what the statements under sql/ do for devices, column by column, and nothing else: it makes no
-- enrolment, revokes and restores nobody, deletes no evidence, changes no event, sets none of the database's times.
--
-- Only what is ours is touched: what whoever runs this owns, and is no part of an extension. Other objects in the
-- schema, such as pg_stat_statements, belong to others.
DO $$
DECLARE
    own record;
BEGIN
    FOR own IN
        SELECT
            'TABLE' AS kind,
            oid::regclass::text AS name
        FROM pg_class
        WHERE
            relnamespace = 'public'::regnamespace
            AND relkind IN ('r', 'p', 'v', 'm')
            AND relowner = current_user::regrole
            AND NOT EXISTS (
                SELECT FROM pg_depend
                WHERE classid = 'pg_class'::regclass AND objid = pg_class.oid AND deptype = 'e'
            )
        UNION ALL
        SELECT
            'FUNCTION',
            oid::regprocedure::text
        FROM pg_proc
        WHERE
            pronamespace = 'public'::regnamespace
            AND prokind = 'f'
            AND proowner = current_user::regrole
            AND NOT EXISTS (
                SELECT FROM pg_depend
                WHERE classid = 'pg_proc'::regclass AND objid = pg_proc.oid AND deptype = 'e'
            )
    LOOP
        EXECUTE format('REVOKE ALL ON %s %s FROM watchpost_writer, watchpost_reader, public', own.kind, own.name);
    END LOOP;
END
$$;

GRANT SELECT (
    device_id, public_key_pem, key_thumbprint, hostname, macs, ips, os, browsers, hostname_at, macs_at, ips_at, os_at,
    browsers_at, registered_at, last_heartbeat, last_report, revoked_at, archived_at, erased_at,
    xmax
) ON devices TO watchpost_writer;
GRANT INSERT (
    device_id, public_key_pem, key_thumbprint, hostname, macs, ips, os, browsers, hostname_at, macs_at, ips_at, os_at,
    browsers_at, registered_at, last_heartbeat
) ON devices TO watchpost_writer;
GRANT UPDATE (
    public_key_pem, key_thumbprint, hostname, macs, ips, os, browsers, hostname_at, macs_at, ips_at, os_at, browsers_at,
    last_heartbeat, last_report, archived_at, erased_at
) ON devices TO watchpost_writer;

GRANT SELECT (
    instance_id, device_id, browser_name, browser_version, profile_name, profile_path, extension_id,
    extension_version, browser_name_at, browser_version_at, profile_name_at, profile_path_at, extension_id_at,
    extension_version_at, discovered_at, created_at, last_seen, last_report, archived_at, released_at, xmax
) ON browser_instances TO watchpost_writer;
GRANT INSERT (
    instance_id, device_id, browser_name, browser_version, profile_name, profile_path, extension_id,
    extension_version, browser_name_at, browser_version_at, profile_name_at, profile_path_at, extension_id_at,
    extension_version_at, discovered_at, last_seen
) ON browser_instances TO watchpost_writer;
-- device_id: an instance moves when its device is gone.
GRANT UPDATE (
    device_id, browser_name, browser_version, profile_name, profile_path, extension_id, extension_version,
    browser_name_at, browser_version_at, profile_name_at, profile_path_at, extension_id_at, extension_version_at,
    discovered_at, last_seen, last_report, archived_at, released_at
) ON browser_instances TO watchpost_writer;
GRANT EXECUTE ON FUNCTION is_outdated(timestamptz, timestamptz) TO watchpost_writer;

GRANT SELECT (device_id, event_type, subject, noticed_on), INSERT (device_id, event_type, subject, noticed_on),
UPDATE (noticed_on)
ON conflict_notices TO watchpost_writer;

GRANT SELECT (
    "timestamp", device_id, prompt_id, instance_id, site, url, prompt, browser_name, browser_version, profile_name,
    username, page_title, conversation_id, model, action, metadata, created_at
) ON prompts TO watchpost_writer;
GRANT INSERT (
    "timestamp", device_id, prompt_id, instance_id, site, url, prompt, browser_name, browser_version, profile_name,
    username, page_title, conversation_id, model, action, metadata
) ON prompts TO watchpost_writer;

GRANT SELECT (
    reported_at, device_id, status_id, instance_id, status, reported_by, metadata, created_at
) ON extension_status TO watchpost_writer;
GRANT INSERT (
    reported_at, device_id, status_id, instance_id, status, reported_by, metadata
) ON extension_status TO watchpost_writer;

GRANT SELECT (
    detected_at, device_id, event_id, instance_id, event_type, severity, user_context, details, created_at
) ON compliance_events TO watchpost_writer;
GRANT INSERT (
    detected_at, device_id, event_id, instance_id, event_type, severity, user_context, details
) ON compliance_events TO watchpost_writer;

-- To count uses; whether it is spent, expired or revoked decides the statement.
GRANT SELECT (enrollment_id, uses, max_uses, expires_at, revoked_at) ON enrollments TO watchpost_writer;
GRANT UPDATE (uses) ON enrollments TO watchpost_writer;

-- Expired rows go as new ones come.
GRANT
SELECT (device_id, jti, use_id, expires_at), INSERT (device_id, jti, use_id, expires_at), UPDATE (use_id), DELETE
ON client_assertions TO watchpost_writer;

-- For the readiness probe.
GRANT SELECT (migration_id) ON _yoyo_migration TO watchpost_writer;
GRANT SELECT (name) ON migration_checksums TO watchpost_writer;
-- For the metrics, and for the partitions of coming months.
GRANT EXECUTE ON FUNCTION
event_tables(), event_partitions(), missing_months(int, int), month_start_ms(date), create_month(text, date),
begin_rebuild(text, date[]), copy_page(text, bigint, bigint, text, uuid, int), finish_rebuild(text, bigint),
abandon_rebuild(text, bigint)
TO watchpost_writer;

-- Neither keys nor enrolments nor what operators did.
GRANT SELECT (
    device_id, key_thumbprint, hostname, macs, ips, os, browsers, registered_at, last_heartbeat, revoked_at,
    archived_at
) ON devices TO watchpost_reader;
GRANT SELECT ON browser_instances, prompts, extension_status, compliance_events TO watchpost_reader;
