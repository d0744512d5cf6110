-- Loses every device and its key: each must register again.
DROP TABLE devices;
