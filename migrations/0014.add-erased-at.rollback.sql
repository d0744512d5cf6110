-- Loses which rows were erased; what they said is gone for good.
ALTER TABLE prompts DROP COLUMN erased_at;
ALTER TABLE extension_status DROP COLUMN erased_at;
ALTER TABLE compliance_events DROP COLUMN erased_at;
