"""The built-in model: a procedural video world, a training recipe, and the checkpoint it made."""
