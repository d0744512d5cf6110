DROP FUNCTION is_about(notes, text, text);
DROP TABLE notes;
