-- Revoke an enrolment: nobody registers with it any more. A repeat keeps the first time.
--
-- enrollment_id  uuid
--
-- Returns  no row when there is none, else: enrollment_id, revoked_at
-- Index    enrollments_pkey
-- Locks    the enrolment's row
-- Load     operators only
UPDATE enrollments
SET revoked_at = least(revoked_at, now())
WHERE enrollment_id = %(enrollment_id)s
RETURNING enrollment_id, revoked_at;
