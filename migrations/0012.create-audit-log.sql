-- Audit log: what operators did. Nobody may change or delete an entry, the tables' owner included.
-- Deploy before the code. Locks: none that anyone waits for; the table is new.
CREATE TABLE audit_log (
    audit_id uuid PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT now(),
    actor text NOT NULL,
    action text NOT NULL CHECK (action ~ '^[a-z_]+[.][a-z_]+$'),
    target text,
    details jsonb
);

-- For lists, newest first.
CREATE INDEX audit_log_at_idx ON audit_log (at, audit_id);

-- An owner has these rights until they are taken away; to take them back would be an act of its own.
REVOKE UPDATE, DELETE, TRUNCATE ON audit_log FROM current_user;

COMMENT ON TABLE audit_log IS 'What operators did with the command line. Append-only.';
COMMENT ON COLUMN audit_log.audit_id IS 'Made by the command, so that its own retry is no second entry.';
COMMENT ON COLUMN audit_log.at IS 'Database clock.';
COMMENT ON COLUMN audit_log.actor IS 'Login name of the operator, before sudo. Personal data.';
COMMENT ON COLUMN audit_log.action IS 'Noun and verb, such as device.revoke.';
COMMENT ON COLUMN audit_log.target IS
'What it was done to: a device, an enrolment, a table. Of an erased user only the SHA-256 of the name.';
COMMENT ON COLUMN audit_log.details IS 'Counts, reasons, limits. Never a token, a key or a prompt.';
