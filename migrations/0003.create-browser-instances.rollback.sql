-- Loses every browser instance: heartbeats make them again, without the names that only a registration carries.
DROP TABLE browser_instances;
