"""The stages of a run: they call the lower packages, which do not know runs."""
