-- Client assertions: the jti of each that was accepted, so that none is accepted twice (RFC 7523, section 3).
-- Deploy before the code. Locks: none that anyone waits for; the table is new.
CREATE TABLE client_assertions (
    device_id text NOT NULL,
    jti text NOT NULL,
    use_id uuid NOT NULL,
    expires_at timestamptz NOT NULL,
    PRIMARY KEY (device_id, jti)
);

-- For the statement that forgets what has expired, oldest first.
CREATE INDEX client_assertions_expires_at_idx ON client_assertions (expires_at);

COMMENT ON TABLE client_assertions IS 'Client assertions already used; a row may go when it has expired.';
COMMENT ON COLUMN client_assertions.device_id IS 'The device that signed it.';
COMMENT ON COLUMN client_assertions.jti IS 'Its id, chosen by the device.';
COMMENT ON COLUMN client_assertions.use_id IS
'The request that used it, so that its own retry is not taken for a second use.';
COMMENT ON COLUMN client_assertions.expires_at IS
'Device clock, with the leeway added: until then it must be remembered.';
