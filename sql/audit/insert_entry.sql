-- Note what an operator does, in the transaction that does it. A retry notes nothing new.
--
-- audit_id  uuid
-- actor     text
-- action    text
-- target    text  or null
-- details   json  an object, or null
--
-- Returns  audit_id, or no row for a retry
-- Index    audit_log_pkey
-- Load     one call a command
INSERT INTO audit_log (audit_id, actor, action, target, details)
VALUES (%(audit_id)s, %(actor)s, %(action)s, %(target)s, %(details)s::jsonb)
ON CONFLICT DO NOTHING
RETURNING audit_id;
