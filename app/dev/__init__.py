"""The embedded PostgreSQL of a laptop and of the tests. Nothing here runs in production."""
