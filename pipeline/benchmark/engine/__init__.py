"""The engine beside transformers' dense `generate`: the same weights, the same frames, one process."""
