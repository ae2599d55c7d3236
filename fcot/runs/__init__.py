"""A configuration resolved into plain values: its identity, its stages, its metrics."""
