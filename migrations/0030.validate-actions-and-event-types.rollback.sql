-- Loses nothing: a constraint that holds may stay so, and the rollback of 0029 replaces it.
DO $$
BEGIN
END
$$;
