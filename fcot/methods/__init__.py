"""How students are made: one entry per method."""
