-- Loses nothing: rows with other actions stay, new ones are refused.
ALTER TABLE prompts DROP CONSTRAINT prompts_action_check;
ALTER TABLE prompts
ADD CONSTRAINT prompts_action_check CHECK (action IN ('allowed', 'warned', 'blocked', 'redacted')) NOT VALID;
ALTER TABLE compliance_events DROP CONSTRAINT compliance_events_event_type_check;
ALTER TABLE compliance_events
ADD CONSTRAINT compliance_events_event_type_check CHECK (event_type ~ '^[a-z][a-z0-9_]{0,63}$') NOT VALID;
COMMENT ON COLUMN prompts.action IS 'What the extension did: allowed, warned, blocked or redacted.';
