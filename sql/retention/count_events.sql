-- Count expired events, for a look before they go.
--
-- from_ms    bigint  only of this time or later, epoch milliseconds
-- before_ms  bigint  older ones have expired, epoch milliseconds
--
-- Returns  one row: expired, held (of them)
-- Index    compliance_events_pkey
-- Scans    compliance_events: months that have expired as a whole
-- Calls    is_held for each expired row: looks holds up by legal_holds_device_id_idx
-- Reads    every expired row
-- Load     operators only
SELECT
    count(*) AS expired,
    count(*) FILTER (WHERE is_held(device_id, detected_at)) AS held
FROM compliance_events
WHERE detected_at >= %(from_ms)s AND detected_at < %(before_ms)s;
