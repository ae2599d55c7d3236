"""The completion store: generations on disk, shared by all runs, keyed by their request."""
