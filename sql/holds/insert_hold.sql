-- Hold rows: neither retention nor erasure touches them from now on. A retry holds nothing new.
--
-- hold_id    uuid
-- device_id  text    or null: every device
-- from_ms    bigint  epoch milliseconds, included; or null
-- to_ms      bigint  epoch milliseconds, excluded; or null
-- reason     text
--
-- Returns  hold_id, or no row for a retry
-- Index    legal_holds_pkey
-- Load     operators only
INSERT INTO legal_holds (hold_id, device_id, from_ms, to_ms, reason)
VALUES (%(hold_id)s, %(device_id)s, %(from_ms)s, %(to_ms)s, %(reason)s)
ON CONFLICT DO NOTHING
RETURNING hold_id;
