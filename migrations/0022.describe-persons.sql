-- is_about: which rows of a table are about a device, or name a person. Erasure asks it, and so does the search for
-- holds before an erasure. count_held does that search for any event table.
-- Deploy before the code. Locks: none; the functions are new.
CREATE FUNCTION is_about(stored prompts, about_device_id text, about_username text)
RETURNS boolean
LANGUAGE sql
STABLE
AS $$
SELECT
    (about_device_id IS NULL OR stored.device_id = about_device_id)
    AND (
        about_username IS NULL
        OR stored.username = about_username
        OR stored.profile_name = about_username
        -- The name itself, or something in it.
        OR jsonb_path_exists(stored.metadata, '$.** ? (@ == $name)', jsonb_build_object('name', about_username))
    )
$$;
REVOKE EXECUTE ON FUNCTION is_about(prompts, text, text) FROM public;

COMMENT ON FUNCTION is_about(prompts, text, text) IS
'Whether a prompt is of a device (null: any) and names a person (null: any).';

CREATE FUNCTION is_about(stored extension_status, about_device_id text, about_username text)
RETURNS boolean
LANGUAGE sql
STABLE
AS $$
SELECT
    (about_device_id IS NULL OR stored.device_id = about_device_id)
    AND (
        about_username IS NULL
        OR stored.reported_by = about_username
        OR jsonb_path_exists(stored.metadata, '$.** ? (@ == $name)', jsonb_build_object('name', about_username))
    )
$$;
REVOKE EXECUTE ON FUNCTION is_about(extension_status, text, text) FROM public;

COMMENT ON FUNCTION is_about(extension_status, text, text) IS
'Whether a status is of a device (null: any) and names a person (null: any).';

CREATE FUNCTION is_about(stored compliance_events, about_device_id text, about_username text)
RETURNS boolean
LANGUAGE sql
STABLE
AS $$
SELECT
    (
        about_device_id IS NULL
        OR stored.device_id = about_device_id
        -- It claimed another device's key: that device's event has its host name.
        OR (
            stored.event_type = 'registration_conflict'
            AND stored.details @> jsonb_build_object('device_id', about_device_id)
        )
    )
    AND (
        about_username IS NULL
        OR jsonb_path_exists(
            jsonb_build_array(stored.user_context, stored.details),
            '$.** ? (@ == $name)',
            jsonb_build_object('name', about_username)
        )
    )
$$;
REVOKE EXECUTE ON FUNCTION is_about(compliance_events, text, text) FROM public;

COMMENT ON FUNCTION is_about(compliance_events, text, text) IS
'Whether an event is about a device (null: any) and names a person (null: any).';

CREATE FUNCTION is_about(stored browser_instances, about_device_id text, about_username text)
RETURNS boolean
LANGUAGE sql
STABLE
AS $$
SELECT
    (stored.profile_name IS NOT NULL OR stored.profile_path IS NOT NULL)
    AND (about_device_id IS NULL OR stored.device_id = about_device_id)
    AND (
        about_username IS NULL
        OR stored.profile_name = about_username
        -- A folder of the path, as in /Users/anna/Library or C:\Users\anna.
        OR about_username = ANY(regexp_split_to_array(stored.profile_path, '[/\\]'))
    )
$$;
REVOKE EXECUTE ON FUNCTION is_about(browser_instances, text, text) FROM public;

COMMENT ON FUNCTION is_about(browser_instances, text, text) IS
'Whether a browser profile has a name or a path, is on a device (null: any) and names a person (null: any).';

CREATE FUNCTION is_device_held(held_device_id text)
RETURNS boolean
LANGUAGE sql
STABLE
AS $$
SELECT EXISTS (
    SELECT FROM legal_holds
    WHERE device_id = held_device_id AND released_at IS NULL
)
$$;
REVOKE EXECUTE ON FUNCTION is_device_held(text) FROM public;

COMMENT ON FUNCTION is_device_held(text) IS
'Whether what is known of a device beside its events is held: it has no time, so any hold of the device holds it.';

CREATE FUNCTION count_held(
    event_table text,
    about_device_id text,
    about_username text,
    after_ms bigint,
    after_device text,
    after_id uuid,
    page_rows int
)
RETURNS TABLE (changed bigint, last_ms bigint, last_device text, last_id uuid)
LANGUAGE plpgsql
STABLE
SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    key record;
BEGIN
    SELECT described.time_column AS time, described.id_column AS id
    INTO STRICT key
    FROM public.event_tables() AS described
    WHERE described.table_name = event_table;

    RETURN QUERY EXECUTE format(
        $sql$
        WITH page AS (
            SELECT %1$I AS at_ms, device_id, %2$I AS id
            FROM public.%3$I
            WHERE %1$I >= $3 AND (%1$I, device_id, %2$I) > ($3, $4, $5)
            ORDER BY %1$I, device_id, %2$I
            LIMIT $6
        ),

        held AS (
            SELECT page.at_ms
            FROM page
            INNER JOIN public.%3$I AS stored
                ON page.at_ms = stored.%1$I AND page.device_id = stored.device_id AND page.id = stored.%2$I
            WHERE
                stored.erased_at IS NULL
                AND public.is_about(stored, $1, $2)
                AND public.is_held(stored.device_id, stored.%1$I, stored.created_at)
        )

        SELECT (SELECT count(*) FROM held), page.at_ms, page.device_id, page.id
        FROM page
        ORDER BY page.at_ms DESC, page.device_id DESC, page.id DESC
        LIMIT 1
        $sql$,
        key.time, key.id, event_table
    ) USING about_device_id, about_username, after_ms, after_device, after_id, page_rows;
END
$$;
REVOKE EXECUTE ON FUNCTION count_held(text, text, text, bigint, text, uuid, int) FROM public;

COMMENT ON FUNCTION count_held(text, text, text, bigint, text, uuid, int) IS
'How many rows of one page of an event table are about a device or a person and held. No row: the page was empty.';
