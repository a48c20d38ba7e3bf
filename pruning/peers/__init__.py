"""Other methods behind the same protocol, for side-by-side runs on the same tokens."""
