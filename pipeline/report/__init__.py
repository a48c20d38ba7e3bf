"""The report of a run: one HTML file that needs nothing else, made from the run's folder and result files."""
