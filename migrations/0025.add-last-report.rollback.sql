-- Loses when reports last arrived, without which devices that send no heartbeat are archived.
DROP FUNCTION is_silent(browser_instances, bigint);
DROP FUNCTION is_silent(devices, bigint);
DROP FUNCTION last_arrival(browser_instances);
DROP FUNCTION last_arrival(devices);
ALTER TABLE browser_instances DROP COLUMN last_report;
ALTER TABLE devices DROP COLUMN last_report;
