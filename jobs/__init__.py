"""What a user starts: thin command lines over the pipeline."""
