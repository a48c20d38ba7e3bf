"""The engine beside transformers' dense `generate`: the same weights, the same frames, one process."""

import pipeline.engine  # noqa: F401  # before transformers, which it quiets
