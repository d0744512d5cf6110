-- Loses every compliance event. Take a backup first.
DROP TABLE compliance_events;
