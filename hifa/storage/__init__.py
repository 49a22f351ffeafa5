"""Files of runs and assets."""
