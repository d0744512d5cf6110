-- Conflict notices: which conflicts have left a compliance event today, so that a repeat leaves none.
-- Deploy before the code. Locks: none that anyone waits for; the table is new.
CREATE TABLE conflict_notices (
    device_id text NOT NULL,
    event_type text NOT NULL,
    subject text NOT NULL,
    noticed_on date NOT NULL,
    PRIMARY KEY (device_id, event_type, subject)
) WITH (fillfactor = 70);

COMMENT ON TABLE conflict_notices IS 'Conflicts that left a compliance event, one row each, however often repeated.';
COMMENT ON COLUMN conflict_notices.device_id IS 'The device that the event is about.';
COMMENT ON COLUMN conflict_notices.event_type IS 'Such as registration_conflict.';
COMMENT ON COLUMN conflict_notices.subject IS
'What it is in conflict with: a key''s thumbprint, or an instance and a device.';
COMMENT ON COLUMN conflict_notices.noticed_on IS 'Database clock, UTC: the day of the last event.';
