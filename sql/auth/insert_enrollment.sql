-- Mint an enrolment. A retry stores nothing new.
--
-- enrollment_id  uuid
-- label          text
-- max_uses       bigint
-- expires_at     double precision  epoch seconds
--
-- Returns  enrollment_id, or no row for a retry
-- Index    enrollments_pkey
-- Load     operators only
INSERT INTO enrollments (enrollment_id, label, max_uses, expires_at)
VALUES (%(enrollment_id)s, %(label)s, %(max_uses)s, to_timestamp(%(expires_at)s))
ON CONFLICT DO NOTHING
RETURNING enrollment_id;
