-- Loses every status report. Take a backup first.
DROP TABLE extension_status;
