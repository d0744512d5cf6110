-- Extension status: whether the extension is on, one row a report.
-- Deploy before the code. Locks: none that anyone waits for; the table is new.
CREATE TABLE extension_status (
    reported_at bigint NOT NULL,
    device_id text NOT NULL,
    status_id uuid NOT NULL,
    instance_id text NOT NULL,
    status text NOT NULL CHECK (status IN ('enabled', 'disabled')),
    reported_by text,
    metadata jsonb,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (reported_at, device_id, status_id)
);

COMMENT ON TABLE extension_status IS 'Reports of whether the extension is on. Evidence: never updated.';
COMMENT ON COLUMN extension_status.reported_at IS
'Client clock, epoch milliseconds; server clock when the report gave none.';
COMMENT ON COLUMN extension_status.device_id IS 'The device whose token reported it.';
COMMENT ON COLUMN extension_status.status_id IS 'Chosen by the client, or derived from the content.';
COMMENT ON COLUMN extension_status.instance_id IS 'The browser instance that the report is about.';
COMMENT ON COLUMN extension_status.status IS 'enabled or disabled.';
COMMENT ON COLUMN extension_status.reported_by IS 'agent, extension, or the id of whoever reported it.';
COMMENT ON COLUMN extension_status.metadata IS 'Whatever else was reported. May hold personal data.';
COMMENT ON COLUMN extension_status.created_at IS 'Database clock: when it was stored.';
