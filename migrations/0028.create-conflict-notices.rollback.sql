-- Loses which conflicts have left an event today: each leaves one more.
DROP TABLE conflict_notices;
