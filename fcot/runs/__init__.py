"""A run: its configuration resolved into plain values, its identity, its pipeline, its metrics."""
