-- Enrolments: what an operator mints so that devices may register, counted and revocable.
-- Deploy before the code. Locks: none that anyone waits for; the table is new.
CREATE TABLE enrollments (
    enrollment_id uuid PRIMARY KEY,
    label text NOT NULL,
    max_uses bigint NOT NULL CHECK (max_uses > 0),
    uses bigint NOT NULL DEFAULT 0 CHECK (uses BETWEEN 0 AND max_uses),
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    revoked_at timestamptz
);

COMMENT ON TABLE enrollments IS 'Enrolment tokens by which devices register. The token itself is not stored.';
COMMENT ON COLUMN enrollments.enrollment_id IS 'The jti of the enrolment token.';
COMMENT ON COLUMN enrollments.label IS 'What the operator calls it. Not personal data.';
COMMENT ON COLUMN enrollments.max_uses IS 'Devices that may register with it.';
COMMENT ON COLUMN enrollments.uses IS 'Devices that have registered with it; a repeated registration counts once.';
COMMENT ON COLUMN enrollments.created_at IS 'Database clock.';
COMMENT ON COLUMN enrollments.expires_at IS 'Database clock; the exp of the token.';
COMMENT ON COLUMN enrollments.revoked_at IS 'Database clock; null while it is not revoked.';
