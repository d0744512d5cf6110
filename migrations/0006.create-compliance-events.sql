-- Compliance events: tampering, blocked prompts, and what the service itself notices about a device.
-- Deploy before the code. Locks: none that anyone waits for; the table is new.
CREATE TABLE compliance_events (
    detected_at bigint NOT NULL,
    device_id text NOT NULL,
    event_id uuid NOT NULL,
    instance_id text,
    event_type text NOT NULL CHECK (event_type ~ '^[a-z][a-z0-9_]{0,63}$'),
    severity text NOT NULL CHECK (severity IN ('low', 'medium', 'high', 'critical')),
    user_context jsonb,
    details jsonb,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (detected_at, device_id, event_id)
);

COMMENT ON TABLE compliance_events IS 'Tampering, blocked prompts and other events. Evidence: never updated.';
COMMENT ON COLUMN compliance_events.detected_at IS
'Client clock, epoch milliseconds; server clock when the report gave none.';
COMMENT ON COLUMN compliance_events.device_id IS 'The device that it is about, whose token reported it.';
COMMENT ON COLUMN compliance_events.event_id IS 'Chosen by the client, or derived from the content.';
COMMENT ON COLUMN compliance_events.instance_id IS 'The browser instance that it is about, if any.';
COMMENT ON COLUMN compliance_events.event_type IS 'In lower_snake_case, such as tamper_detected.';
COMMENT ON COLUMN compliance_events.severity IS 'low, medium, high or critical.';
COMMENT ON COLUMN compliance_events.user_context IS 'Who was at the device, a string or an object. Personal data.';
COMMENT ON COLUMN compliance_events.details IS 'Whatever else was reported. May hold personal data.';
COMMENT ON COLUMN compliance_events.created_at IS 'Database clock: when it was stored.';
