-- Erasure: what a person's rows said is blanked where it stands. The row, its key and its time stay, so that counts
-- are what they were and a replay of the same report is a conflict, not a new row.
-- Deploy before the code. Locks: each table exclusively, for the moment that a column without a default takes.
ALTER TABLE prompts ADD COLUMN erased_at timestamptz;
ALTER TABLE extension_status ADD COLUMN erased_at timestamptz;
ALTER TABLE compliance_events ADD COLUMN erased_at timestamptz;

COMMENT ON COLUMN prompts.erased_at IS 'Database clock; null while the row says what was reported.';
COMMENT ON COLUMN extension_status.erased_at IS 'Database clock; null while the row says what was reported.';
COMMENT ON COLUMN compliance_events.erased_at IS 'Database clock; null while the row says what was reported.';
