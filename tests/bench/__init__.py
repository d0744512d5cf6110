"""The benchmark: how fast the service stores, beside the database alone and beside another service of equal duties."""
