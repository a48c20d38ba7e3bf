"""A whole run beside its slowest stage alone, and what a row costs the driver."""
