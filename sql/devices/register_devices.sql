-- Register devices by their public keys. A retry with the same key updates the metadata and spends no enrolment.
--
-- rows  json  array of objects; fields and types are those of `input`; ordinal from 0; event_id and detected_at are
--             for the compliance event that a conflict leaves behind
--
-- Returns  a row for each input row: ordinal, registered_at,
--          outcome (created | updated | key_conflict | device_revoked | enrollment_unknown | enrollment_revoked |
--          enrollment_expired | enrollment_used_up | null: another registration went first; ask again)
-- Index    enrollments_pkey, devices_pkey, devices_key_thumbprint_key, compliance_events_pkey
-- Locks    the enrolments' rows, so that uses are counted exactly; then the devices' rows; each in key order
-- Load     one call a group commit, 1 to 500 rows, once in a device's life
WITH input AS (
    SELECT *
    FROM json_to_recordset(%(rows)s::json) AS r (
        ordinal int, enrollment_id uuid, device_id text, public_key_pem text, key_thumbprint text, hostname text,
        macs json, ips json, os jsonb, browsers jsonb, registered_at bigint, event_id uuid, detected_at bigint
    )
    -- Always true. It lowers the row estimate: without it, a batch scans devices instead of using the index.
    WHERE r.ordinal BETWEEN 0 AND 100000
),

enrollment AS (
    SELECT
        enrollment_id,
        revoked_at,
        expires_at,
        uses,
        max_uses - uses AS uses_left
    FROM enrollments
    WHERE enrollment_id IN (SELECT input.enrollment_id FROM input)
    ORDER BY enrollment_id
    FOR UPDATE
),

-- Looked up apart: an outer join with a table that is spread over machines would fetch all of it. Materialized, here
-- and below, since the planner takes the set for one row and would run what it joins again for each of five hundred.
-- For the same reason what is joined in memory is joined in full, though the left side has a row for each of the right:
-- full joins are hashed or merged, others would look through all rows again for each.
same_device AS MATERIALIZED (
    SELECT
        input.ordinal,
        devices.device_id,
        devices.key_thumbprint,
        devices.revoked_at
    FROM input
    INNER JOIN devices ON input.device_id = devices.device_id
),

same_key AS MATERIALIZED (
    SELECT
        input.ordinal,
        devices.device_id
    FROM input
    INNER JOIN devices ON input.key_thumbprint = devices.key_thumbprint
),

judged AS (
    SELECT
        input.*,
        enrollment.uses_left,
        -- Others registered while this waited for the lock, and may have been these very devices.
        enrollment.uses != enrollment_before.uses AS is_stale,
        CASE
            WHEN same_device.key_thumbprint != input.key_thumbprint THEN same_device.device_id
            ELSE same_key.device_id
        END AS existing_device_id,
        CASE
            WHEN enrollment.enrollment_id IS NULL THEN 'enrollment_unknown'
            WHEN enrollment.revoked_at IS NOT NULL THEN 'enrollment_revoked'
            WHEN enrollment.expires_at < now() - interval '60 seconds' THEN 'enrollment_expired'
            WHEN same_device.revoked_at IS NOT NULL THEN 'device_revoked'
            WHEN same_device.key_thumbprint != input.key_thumbprint THEN 'key_conflict'
            WHEN same_key.device_id != input.device_id THEN 'key_conflict'
            WHEN same_device.device_id IS NOT NULL THEN 'known'
            ELSE 'new'
        END AS verdict,
        greatest(
            row_number() OVER (PARTITION BY input.device_id ORDER BY input.ordinal),
            row_number() OVER (PARTITION BY input.key_thumbprint ORDER BY input.ordinal)
        ) AS occurrence
    FROM input
    LEFT JOIN enrollments AS enrollment_before ON input.enrollment_id = enrollment_before.enrollment_id
    FULL JOIN enrollment ON input.enrollment_id = enrollment.enrollment_id
    FULL JOIN same_device ON input.ordinal = same_device.ordinal
    FULL JOIN same_key ON input.ordinal = same_key.ordinal
),

queued AS (
    SELECT
        judged.*,
        row_number() OVER (
            PARTITION BY judged.enrollment_id, judged.verdict, judged.occurrence ORDER BY judged.ordinal
        ) AS place,
        -- A batch may register a device more than once: of each field the last value counts.
        first_value(judged.hostname) OVER same AS last_hostname,
        (array_agg(judged.macs) FILTER (WHERE judged.macs IS NOT NULL) OVER same)[1] AS last_macs,
        (array_agg(judged.ips) FILTER (WHERE judged.ips IS NOT NULL) OVER same)[1] AS last_ips,
        (array_agg(judged.os) FILTER (WHERE judged.os IS NOT NULL) OVER same)[1] AS last_os,
        (array_agg(judged.browsers) FILTER (WHERE judged.browsers IS NOT NULL) OVER same)[1] AS last_browsers
    FROM judged
    WINDOW same AS (
        PARTITION BY judged.device_id, judged.key_thumbprint, judged.verdict ORDER BY judged.ordinal DESC
        ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING
    )
),

stored AS (
    INSERT INTO devices AS d (
        device_id, public_key_pem, key_thumbprint, hostname, macs, ips, os, browsers, registered_at
    )
    SELECT
        device_id,
        public_key_pem,
        key_thumbprint,
        last_hostname,
        CASE WHEN last_macs IS NOT NULL THEN ARRAY(SELECT json_array_elements_text(last_macs)) END,
        CASE WHEN last_ips IS NOT NULL THEN ARRAY(SELECT json_array_elements_text(last_ips)) END,
        last_os,
        last_browsers,
        coalesce(to_timestamp(registered_at / 1000.0), now())
    FROM queued
    WHERE occurrence = 1 AND (verdict = 'known' OR (verdict = 'new' AND place <= uses_left))
    ORDER BY device_id
    ON CONFLICT (device_id) DO UPDATE SET
        public_key_pem = excluded.public_key_pem,
        key_thumbprint = excluded.key_thumbprint,
        hostname = excluded.hostname,
        macs = coalesce(excluded.macs, d.macs),
        ips = coalesce(excluded.ips, d.ips),
        os = coalesce(excluded.os, d.os),
        browsers = coalesce(excluded.browsers, d.browsers),
        archived_at = NULL
    WHERE
        d.revoked_at IS NULL
        AND (d.key_thumbprint = excluded.key_thumbprint OR d.key_thumbprint IS NULL)
    -- xmax is 0 in a row that was inserted and never locked.
    RETURNING d.device_id, d.key_thumbprint, d.registered_at, d.xmax = 0 AS inserted
),

decided AS MATERIALIZED (
    SELECT
        queued.*,
        stored.registered_at AS stored_at,
        stored.key_thumbprint AS stored_thumbprint,
        stored.inserted
    FROM queued
    FULL JOIN stored ON queued.device_id = stored.device_id
),

-- Uses that were meant for devices which another session registered meanwhile.
vacant AS MATERIALIZED (
    SELECT DISTINCT enrollment_id
    FROM decided
    WHERE occurrence = 1 AND verdict = 'new' AND place <= uses_left AND inserted IS DISTINCT FROM TRUE
),

spent AS (
    UPDATE enrollments
    SET uses = enrollments.uses + taken.uses
    FROM (
        SELECT
            enrollment_id,
            count(*) AS uses
        FROM decided
        WHERE occurrence = 1 AND verdict = 'new' AND inserted
        GROUP BY enrollment_id
    ) AS taken
    WHERE enrollments.enrollment_id = taken.enrollment_id
),

-- A clone or a takeover must be visible to whoever reads the existing device's events.
conflict_events AS (
    INSERT INTO compliance_events (detected_at, device_id, event_id, event_type, severity, details)
    SELECT
        detected_at,
        existing_device_id,
        event_id,
        'registration_conflict',
        'high',
        jsonb_build_object(
            'device_id', device_id,
            'key_thumbprint', key_thumbprint,
            'hostname', hostname,
            'enrollment_id', enrollment_id
        )
    FROM queued
    WHERE verdict = 'key_conflict'
    ORDER BY detected_at, existing_device_id, event_id
    ON CONFLICT DO NOTHING
)

SELECT
    decided.ordinal,
    CASE
        WHEN decided.verdict NOT IN ('known', 'new') THEN decided.verdict
        WHEN decided.occurrence > 1 AND decided.verdict = 'new' THEN NULL
        WHEN decided.verdict = 'new' AND decided.place > decided.uses_left
            THEN CASE WHEN decided.is_stale OR vacant.enrollment_id IS NOT NULL THEN NULL ELSE 'enrollment_used_up' END
        -- Of two keys for a device whose key was forgotten the first is stored: the other is a conflict by now.
        WHEN decided.inserted IS NULL OR decided.key_thumbprint != decided.stored_thumbprint THEN NULL
        WHEN decided.inserted THEN 'created'
        ELSE 'updated'
    END AS outcome,
    decided.stored_at AS registered_at
FROM decided
FULL JOIN vacant ON decided.enrollment_id = vacant.enrollment_id;
