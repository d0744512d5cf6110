-- Holds in force, by device: retention and erasure look at them for each row, which took two milliseconds among ten
-- thousand of them.
-- Deploy before the code or after it. Locks: legal_holds, against changes, while its rows are read: only operators make
-- holds, and they are few.
-- squawk-ignore require-concurrent-index-creation
CREATE INDEX legal_holds_device_id_idx ON legal_holds (device_id) WHERE released_at IS NULL;
