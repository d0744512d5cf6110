-- Loses nothing.
DROP INDEX legal_holds_device_id_idx;
