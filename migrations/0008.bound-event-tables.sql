-- Event tables: a time before which all their rows are, so that each can become the first partition without a scan.
-- Deploy before the code, with 0009 to 0011: rows of the month after next would be refused from that month on.
-- Locks: each table exclusively, for the moment that a constraint takes which looks at no row.
DO $$
DECLARE
    kept record;
    newest bigint;
    before bigint;
BEGIN
    -- In the order in which a batch writes them, here and in what follows: no two wait for each other.
    FOR kept IN
        SELECT *
        FROM (
            VALUES ('prompts', 'timestamp'), ('extension_status', 'reported_at'), ('compliance_events', 'detected_at')
        ) AS event_tables (name, key)
    LOOP
        EXECUTE format('SELECT coalesce(max(%I), 0) FROM %I', kept.key, kept.name) INTO newest;
        -- The start of the month after next. Clients may report times of up to a day ahead.
        before := extract(EPOCH FROM (
            date_trunc('month', greatest(now(), to_timestamp(newest / 1000.0)) AT TIME ZONE 'UTC')
            + interval '2 months'
        ) AT TIME ZONE 'UTC') * 1000;
        EXECUTE format(
            'ALTER TABLE %I ADD CONSTRAINT %I CHECK (%I < %s) NOT VALID',
            kept.name, kept.name || '_before', kept.key, before
        );
    END LOOP;
END
$$;
