-- last_report: when something other than a heartbeat arrived. A device or a browser instance is archived only when
-- nothing at all of it has arrived for long. It is set at most once an hour, and only while no heartbeat comes, so that
-- a report writes no row but its own. A worker remembers for up to an hour that it has asked for an instance, also when
-- that had been noted almost an hour before: an instance's may be two hours too early, a device's one.
-- What was there before counts as heard of now, since it is not known what arrived. No index: a heartbeat must stay
-- HOT.
-- Deploy before the code. Locks: each table exclusively, for the moment that a column with a constant default takes.
ALTER TABLE devices ADD COLUMN last_report timestamptz NOT NULL DEFAULT now();
ALTER TABLE browser_instances ADD COLUMN last_report timestamptz NOT NULL DEFAULT now();

COMMENT ON COLUMN devices.last_report IS
'Database clock, to the hour: when something other than a heartbeat arrived, such as a registration, a prompt or an '
'event. Not kept while heartbeats come.';
COMMENT ON COLUMN browser_instances.last_report IS
'Database clock, up to two hours too early: when something other than a heartbeat arrived that names the instance. Not '
'kept while heartbeats come.';

-- Later than the client's time of a registration, which may be anything.
CREATE FUNCTION last_arrival(stored devices)
RETURNS timestamptz
LANGUAGE sql
STABLE
AS $$
SELECT greatest(stored.last_heartbeat, stored.last_report)
$$;
REVOKE EXECUTE ON FUNCTION last_arrival(devices) FROM public;

COMMENT ON FUNCTION last_arrival(devices) IS 'When anything of a device last arrived, an hour too early at most.';

CREATE FUNCTION last_arrival(stored browser_instances)
RETURNS timestamptz
LANGUAGE sql
STABLE
AS $$
SELECT greatest(stored.last_seen, stored.last_report)
$$;
REVOKE EXECUTE ON FUNCTION last_arrival(browser_instances) FROM public;

COMMENT ON FUNCTION last_arrival(browser_instances) IS
'When anything of a browser instance last arrived, two hours too early at most.';

CREATE FUNCTION is_silent(stored devices, silent_seconds bigint)
RETURNS boolean
LANGUAGE sql
STABLE
AS $$
SELECT
    stored.archived_at IS NULL
    AND last_arrival(stored) + interval '1 hour' < now() - silent_seconds * interval '1 second'
    AND NOT EXISTS (
        SELECT
        FROM browser_instances AS instance
        WHERE
            instance.device_id = stored.device_id
            AND last_arrival(instance) + interval '2 hours' >= now() - silent_seconds * interval '1 second'
    )
$$;
REVOKE EXECUTE ON FUNCTION is_silent(devices, bigint) FROM public;

COMMENT ON FUNCTION is_silent(devices, bigint) IS
'Whether a device is not archived, and neither it nor one of its browser instances was heard of for so many seconds.';

CREATE FUNCTION is_silent(stored browser_instances, silent_seconds bigint)
RETURNS boolean
LANGUAGE sql
STABLE
AS $$
SELECT
    stored.archived_at IS NULL
    AND last_arrival(stored) + interval '2 hours' < now() - silent_seconds * interval '1 second'
$$;
REVOKE EXECUTE ON FUNCTION is_silent(browser_instances, bigint) FROM public;

COMMENT ON FUNCTION is_silent(browser_instances, bigint) IS
'Whether a browser instance is not archived, and was not heard of for so many seconds.';
