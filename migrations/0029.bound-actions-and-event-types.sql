-- Actions and event types: any lower_snake_case value of 1 to 64 characters, so that a newer extension loses no prompt.
-- The schemas check the form; a pattern here would cost 1 us a row.
-- Deploy before the code. Locks: prompts and compliance_events exclusively, for the moment that constraints take which
-- look at no row; 0030 validates them.
-- squawk-ignore ban-drop-constraint
ALTER TABLE prompts DROP CONSTRAINT prompts_action_check;
ALTER TABLE prompts ADD CONSTRAINT prompts_action_check CHECK (length(action) BETWEEN 1 AND 64) NOT VALID;
-- squawk-ignore ban-drop-constraint
ALTER TABLE compliance_events DROP CONSTRAINT compliance_events_event_type_check;
ALTER TABLE compliance_events
ADD CONSTRAINT compliance_events_event_type_check CHECK (length(event_type) BETWEEN 1 AND 64) NOT VALID;

COMMENT ON COLUMN prompts.action IS 'What the extension did, in lower_snake_case, such as allowed or blocked.';
