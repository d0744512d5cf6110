-- Event tables: look whether all rows are before the time that 0008 set.
-- Deploy before the code. Locks: none that a reader or writer waits for; each table is read once.
ALTER TABLE prompts VALIDATE CONSTRAINT prompts_before;
ALTER TABLE extension_status VALIDATE CONSTRAINT extension_status_before;
ALTER TABLE compliance_events VALIDATE CONSTRAINT compliance_events_before;
