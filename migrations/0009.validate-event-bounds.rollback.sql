-- Loses nothing: a constraint that holds may stay so, and 0008 drops it.
DO $$
BEGIN
END
$$;
