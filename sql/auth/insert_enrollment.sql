-- Mint an enrolment.
--
-- enrollment_id  uuid
-- label          text
-- max_uses       bigint
-- expires_at     double precision  epoch seconds
--
-- Returns  one row: enrollment_id
-- Load     operators only
INSERT INTO enrollments (enrollment_id, label, max_uses, expires_at)
VALUES (%(enrollment_id)s, %(label)s, %(max_uses)s, to_timestamp(%(expires_at)s))
RETURNING enrollment_id;
