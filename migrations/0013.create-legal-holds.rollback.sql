-- Loses every legal hold. Take a backup first, and run no retention until they are back.
DROP FUNCTION is_held(text, bigint);
DROP TABLE legal_holds;
