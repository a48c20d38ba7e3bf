"""How much of a model's accuracy each pruning method keeps, and at what cost."""
