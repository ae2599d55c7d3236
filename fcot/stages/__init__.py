"""What each stage of the pipeline does with a run; the packages below know nothing of runs."""
