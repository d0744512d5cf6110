-- List the enrolments, newest first.
--
-- Returns  enrollment_id, label, uses, max_uses, created_at, expires_at, revoked_at
-- Load     operators only; some hundreds of rows
SELECT
    enrollment_id,
    label,
    uses,
    max_uses,
    created_at,
    expires_at,
    revoked_at
FROM enrollments
ORDER BY created_at DESC, enrollment_id ASC;
