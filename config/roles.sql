-- The three roles of Watchpost. Run once in its database, as a superuser; in a database without tables yet, its owner
-- may do it too, if that role may create roles, as on servers that others run:
--     psql -d watchpost -f config/roles.sql
-- Running it again changes nothing. `flask migrate` as a superuser, and the embedded PostgreSQL, run it themselves.
--
-- watchpost_owner   owns tables and functions: migrations, operators' commands, retention
-- watchpost_writer  what gunicorn uses: no DDL, no DELETE on evidence; config/grants.sql says what it may
-- watchpost_reader  reads, and neither keys nor enrolments
--
-- They may log in and have no password: set them (\password watchpost_writer), or let pg_hba.conf decide.
DO $$
DECLARE
    made text;
    found record;
BEGIN
    FOREACH made IN ARRAY ARRAY['watchpost_owner', 'watchpost_writer', 'watchpost_reader'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = made) THEN
            EXECUTE format('CREATE ROLE %I LOGIN', made);
        END IF;
    END LOOP;

    -- Who waits for a lock makes others wait behind it, and a transaction that idles keeps vacuum from its work.
    FOR found IN
        SELECT *
        FROM (
            VALUES
            ('watchpost_owner', 'statement_timeout', '1h'),
            ('watchpost_owner', 'lock_timeout', '2s'),
            ('watchpost_owner', 'idle_in_transaction_session_timeout', '1min'),
            ('watchpost_writer', 'statement_timeout', '5s'),
            -- It looks rows up by their keys. A plan that was made while a month was empty would scan it for ever.
            ('watchpost_writer', 'enable_seqscan', 'off'),
            ('watchpost_writer', 'lock_timeout', '2500ms'),
            ('watchpost_writer', 'idle_in_transaction_session_timeout', '15s'),
            ('watchpost_reader', 'statement_timeout', '1min'),
            ('watchpost_reader', 'lock_timeout', '1s'),
            ('watchpost_reader', 'idle_in_transaction_session_timeout', '1min'),
            ('watchpost_reader', 'default_transaction_read_only', 'on')
        ) AS wanted (role_name, name, value)
        WHERE
            NOT EXISTS (
                SELECT
                FROM pg_db_role_setting
                INNER JOIN pg_roles ON pg_db_role_setting.setrole = pg_roles.oid
                WHERE
                    pg_roles.rolname = wanted.role_name
                    AND pg_db_role_setting.setdatabase = 0
                    -- What a DBA has set to something else stays.
                    AND array_to_string(pg_db_role_setting.setconfig, E'\n') ~ (E'(^|\n)' || wanted.name || '=')
            )
    LOOP
        EXECUTE format('ALTER ROLE %I SET %I = %L', found.role_name, found.name, found.value);
    END LOOP;

    -- Everybody may make temporary tables until they may not; neither writer nor reader needs one.
    EXECUTE format('REVOKE TEMPORARY ON DATABASE %I FROM public', current_database());
    EXECUTE format('GRANT CONNECT, CREATE, TEMPORARY ON DATABASE %I TO watchpost_owner', current_database());
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO watchpost_writer, watchpost_reader', current_database());

    -- What somebody else has made so far: a release without these roles, or a superuser. Extensions keep their own.
    FOR found IN
        SELECT
            'TABLE' AS kind,
            pg_class.oid::regclass::text AS name,
            pg_class.relowner AS owner
        FROM pg_class
        WHERE
            pg_class.relnamespace = 'public'::regnamespace
            AND pg_class.relkind IN ('r', 'p')
            AND pg_get_userbyid(pg_class.relowner) != 'watchpost_owner'
            AND NOT EXISTS (
                SELECT
                FROM pg_depend
                WHERE
                    pg_depend.classid = 'pg_class'::regclass AND pg_depend.objid = pg_class.oid
                    AND pg_depend.deptype = 'e'
            )
        UNION ALL
        SELECT
            'FUNCTION',
            pg_proc.oid::regprocedure::text,
            pg_proc.proowner
        FROM pg_proc
        WHERE
            pg_proc.pronamespace = 'public'::regnamespace
            -- By name: a DBA's own functions may be there too.
            AND pg_proc.proname IN (
                'abandon_rebuild', 'begin_rebuild', 'copy_page', 'count_expired', 'count_held', 'create_month',
                'delete_expired', 'describe_month', 'drop_partition', 'ensure_partitions', 'event_partitions',
                'event_tables', 'finish_rebuild', 'freeze_holds', 'is_about', 'is_device_held',
                'is_held', 'is_outdated', 'is_silent', 'last_arrival', 'make_partitions', 'mirror_changes',
                'missing_months', 'month_start_ms', 'outside_month', 'rebuild_of', 'unwatch_partition', 'watch_partition'
            )
            AND pg_get_userbyid(pg_proc.proowner) != 'watchpost_owner'
            AND NOT EXISTS (
                SELECT
                FROM pg_depend
                WHERE
                    pg_depend.classid = 'pg_proc'::regclass AND pg_depend.objid = pg_proc.oid
                    AND pg_depend.deptype = 'e'
            )
    LOOP
        EXECUTE format('ALTER %s %s OWNER TO watchpost_owner', found.kind, found.name);
        -- A service that still uses the role which owned everything goes on.
        IF NOT (SELECT rolsuper FROM pg_roles WHERE oid = found.owner) THEN
            EXECUTE format('GRANT watchpost_owner TO %s', found.owner::regrole);
        END IF;
    END LOOP;
END
$$;

REVOKE CREATE ON SCHEMA public FROM public;
GRANT USAGE, CREATE ON SCHEMA public TO watchpost_owner;
GRANT USAGE ON SCHEMA public TO watchpost_writer, watchpost_reader;
