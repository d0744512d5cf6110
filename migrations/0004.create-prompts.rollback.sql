-- Loses every prompt. Take a backup first.
DROP TABLE prompts;
