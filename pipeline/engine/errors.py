"""What the engine refuses, as exceptions whose message is one line for the user."""


class ModelError(ValueError):
    """The model cannot be loaded or run: wrong folder, architecture, weights, device or dtype."""


class EncodeError(RuntimeError):
    """The vision tower failed on a video; its message is that of the cause. Out of memory is never hidden in it."""


class PromptTooLongError(ValueError):
    """Video, prompt and answer together exceed the positions that the model was trained for."""
