-- Loses the record of what operators did. Take a backup first.
DROP TABLE audit_log;
