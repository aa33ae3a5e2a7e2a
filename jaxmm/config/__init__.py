"""The keys of a config, where one comes from, and what its values must be to each other."""
