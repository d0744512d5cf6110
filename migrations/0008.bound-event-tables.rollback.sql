-- Loses nothing.
ALTER TABLE prompts DROP CONSTRAINT prompts_before;
ALTER TABLE extension_status DROP CONSTRAINT extension_status_before;
ALTER TABLE compliance_events DROP CONSTRAINT compliance_events_before;
