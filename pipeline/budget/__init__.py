"""What a job will cost, and the retention that meets a budget of tokens, FLOPs, hours or money."""
