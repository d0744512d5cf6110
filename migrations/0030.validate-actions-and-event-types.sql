-- Actions and event types: check that all rows are within the bounds of 0029.
-- Deploy before the code. Locks: none that a reader or writer waits for; each table is read once.
ALTER TABLE prompts VALIDATE CONSTRAINT prompts_action_check;
ALTER TABLE compliance_events VALIDATE CONSTRAINT compliance_events_event_type_check;
