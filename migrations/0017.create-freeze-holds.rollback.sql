-- Loses nothing.
DROP FUNCTION freeze_holds();
