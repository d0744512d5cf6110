-- List the enrolments, newest first.
--
-- Returns  enrollment_id, label, uses, max_uses, created_at, expires_at, revoked_at
-- Scans    enrollments: all are listed, some hundreds of rows
-- Load     operators only
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
