-- List what operators did, newest first.
--
-- amount  integer  rows
--
-- Returns  audit_id, at, actor, action, target, details
-- Index    audit_log_at_idx
-- Load     operators only
SELECT
    audit_id,
    at,
    actor,
    action,
    target,
    details
FROM audit_log
ORDER BY at DESC, audit_id DESC
LIMIT %(amount)s;
