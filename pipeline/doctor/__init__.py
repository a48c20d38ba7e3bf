"""What a machine, a cluster and a job need in order to run: looked at in seconds, with what to do where it fails."""
