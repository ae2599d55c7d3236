"""Estimates, before a run starts, what it will need: requests, tokens, dollars, memory, hours."""
