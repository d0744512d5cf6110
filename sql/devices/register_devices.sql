-- Register devices by their public keys. A retry with the same key spends no enrolment, and updates the metadata if it
-- comes with a proof of the key.
--
-- rows  json  array of objects; fields and types are those of `input`; ordinal from 0
--
-- Returns  a row for each input row: ordinal, registered_at,
--          outcome (created | updated | device_revoked | enrollment_unknown | enrollment_revoked | enrollment_expired |
--          enrollment_used_up | null: a conflict, which record_conflicts decides on, or another registration went
--          first; ask again)
-- Index    enrollments_pkey, devices_pkey, devices_key_thumbprint_key
-- Locks    the enrolments' rows, so that uses are counted exactly; then the devices' rows; each in key order
-- Load     one call a group commit, 1 to 500 rows, once in a device's life

-- An example runs through the steps: laptop A with key a is stored, and the enrolment has one use left.
--
--     ordinal  input         verdict   occurrence  place  stored             outcome
--     0        A, key a      known     1           1      updated            updated
--     1        B, key b      new       1           1      inserted, as of 2  created
--     2        B, key b      new       2           -      -                  null; then known, so updated
--     3        C, key c      new       1           2      -                  enrollment_used_up
--     4        D, key a      conflict  2           -      -                  null; record_conflicts: key_conflict
WITH input AS (
    SELECT *
    FROM json_to_recordset(%(rows)s::json) AS r (
        ordinal int, enrollment_id uuid, device_id text, public_key_pem text, key_thumbprint text, hostname text,
        macs json, ips json, os jsonb, browsers jsonb, registered_at bigint, has_proof boolean
    )
    -- Always true. It lowers the row estimate: without it, a batch scans devices instead of using the index.
    WHERE r.ordinal BETWEEN 0 AND 100000
),

-- Registrations with one enrolment wait for each other here. Example: uses_left is 1.
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

-- The stored device of the same id. Example: A for 0. Looked up apart, since an outer join would fetch the whole table
-- where it is distributed; materialized, here and below, since the planner expects one row and would run the lookup
-- again for each row that it joins.
same_device AS MATERIALIZED (
    SELECT
        input.ordinal,
        devices.device_id,
        devices.key_thumbprint,
        devices.revoked_at
    FROM input
    INNER JOIN devices ON input.device_id = devices.device_id
),

-- The stored device of the same key. Example: A for 0 and for 4.
same_key AS MATERIALIZED (
    SELECT
        input.ordinal,
        devices.device_id
    FROM input
    INNER JOIN devices ON input.key_thumbprint = devices.key_thumbprint
),

-- What each row is, taken alone. Full joins, here and below, are hashed or merged: the planner expects one row and
-- would run left joins as nested loops, quadratic in the batch. The left side has a row for each of the right.
judged AS (
    SELECT
        input.*,
        enrollment.uses_left,
        -- Others registered while this waited for the lock, perhaps these very devices.
        enrollment.uses != enrollment_before.uses AS is_stale,
        CASE
            WHEN enrollment.enrollment_id IS NULL THEN 'enrollment_unknown'
            WHEN enrollment.revoked_at IS NOT NULL THEN 'enrollment_revoked'
            WHEN enrollment.expires_at < now() - interval '60 seconds' THEN 'enrollment_expired'
            WHEN same_device.key_thumbprint = input.key_thumbprint AND same_device.revoked_at IS NULL THEN 'known'
            WHEN same_device.key_thumbprint = input.key_thumbprint THEN 'device_revoked'
            -- A used-up enrolment answers alike for every other device, known or not.
            WHEN enrollment.uses_left = 0 THEN 'new'
            WHEN same_device.revoked_at IS NOT NULL THEN 'device_revoked'
            WHEN same_device.key_thumbprint != input.key_thumbprint THEN 'conflict'
            WHEN same_key.device_id != input.device_id THEN 'conflict'
            -- Its key was forgotten.
            WHEN same_device.device_id IS NOT NULL THEN 'known'
            ELSE 'new'
        END AS verdict,
        -- Of rows with one device, or one key, the first is stored; the others are asked again when it is.
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

-- Whoever knows a public key may name its device: metadata of a known device needs a proof that the key is held.
trusted AS (
    SELECT
        judged.*,
        judged.has_proof OR judged.verdict = 'new' AS is_trusted
    FROM judged
),

-- New devices queue for the uses that are left. Example: B is first, C second. Of each field of a device that is named
-- more than once the last value counts. Example: 1 gets the metadata of 2.
queued AS (
    SELECT
        judged.*,
        row_number() OVER (
            PARTITION BY judged.enrollment_id, judged.verdict, judged.occurrence ORDER BY judged.ordinal
        ) AS place,
        (array_agg(judged.hostname) FILTER (WHERE judged.is_trusted) OVER same)[1] AS last_hostname,
        (array_agg(judged.macs) FILTER (WHERE judged.is_trusted AND judged.macs IS NOT NULL) OVER same)[1] AS last_macs,
        (array_agg(judged.ips) FILTER (WHERE judged.is_trusted AND judged.ips IS NOT NULL) OVER same)[1] AS last_ips,
        (array_agg(judged.os) FILTER (WHERE judged.is_trusted AND judged.os IS NOT NULL) OVER same)[1] AS last_os,
        (
            array_agg(judged.browsers) FILTER (WHERE judged.is_trusted AND judged.browsers IS NOT NULL) OVER same
        )[1] AS last_browsers
    FROM trusted AS judged
    WINDOW same AS (
        PARTITION BY judged.device_id, judged.key_thumbprint, judged.verdict ORDER BY judged.ordinal DESC
        ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING
    )
),

-- Example: A is updated, B inserted. A registration's metadata is observed now.
stored AS (
    INSERT INTO devices AS d (
        device_id, public_key_pem, key_thumbprint, hostname, macs, ips, os, browsers, hostname_at, macs_at, ips_at,
        os_at, browsers_at, registered_at
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
        CASE WHEN last_hostname IS NOT NULL THEN now() END,
        CASE WHEN last_macs IS NOT NULL THEN now() END,
        CASE WHEN last_ips IS NOT NULL THEN now() END,
        CASE WHEN last_os IS NOT NULL THEN now() END,
        CASE WHEN last_browsers IS NOT NULL THEN now() END,
        coalesce(to_timestamp(registered_at / 1000.0), now())
    FROM queued
    WHERE occurrence = 1 AND (verdict = 'known' OR (verdict = 'new' AND place <= uses_left))
    ORDER BY device_id
    ON CONFLICT (device_id) DO UPDATE SET
        public_key_pem = excluded.public_key_pem,
        key_thumbprint = excluded.key_thumbprint,
        hostname = coalesce(excluded.hostname, d.hostname),
        macs = coalesce(excluded.macs, d.macs),
        ips = coalesce(excluded.ips, d.ips),
        os = coalesce(excluded.os, d.os),
        browsers = coalesce(excluded.browsers, d.browsers),
        hostname_at = coalesce(excluded.hostname_at, d.hostname_at),
        macs_at = coalesce(excluded.macs_at, d.macs_at),
        ips_at = coalesce(excluded.ips_at, d.ips_at),
        os_at = coalesce(excluded.os_at, d.os_at),
        browsers_at = coalesce(excluded.browsers_at, d.browsers_at),
        last_report = excluded.last_report,
        archived_at = NULL,
        erased_at = NULL
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

-- Enrolments with a use that was meant for a device which another session registered meanwhile: who was too late for it
-- asks again. Example: none.
vacant AS MATERIALIZED (
    SELECT DISTINCT enrollment_id
    FROM decided
    WHERE occurrence = 1 AND verdict = 'new' AND place <= uses_left AND inserted IS DISTINCT FROM TRUE
),

-- Example: one use, for B.
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
)

SELECT
    decided.ordinal,
    CASE
        WHEN decided.verdict = 'conflict' THEN NULL
        WHEN decided.verdict NOT IN ('known', 'new') THEN decided.verdict
        -- Example: 2, of which 1 is stored now.
        WHEN decided.occurrence > 1 AND decided.verdict = 'new' AND decided.uses_left > 0 THEN NULL
        -- Example: 3.
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
