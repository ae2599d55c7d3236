"""The stages of a run. They know runs, and call the packages below, which do not."""
