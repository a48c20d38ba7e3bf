"""A checkpoint folder: where it is, what it holds, its fingerprint, and its weights into a model."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from pipeline.engine.errors import ModelError
from pruning.calibration import OWN_FILE

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_BUILTIN = {"builtin:tiny": Path(__file__).parent.parent / "tiny" / "checkpoint"}

# Everything in a folder that can change an answer.
CONTENT_FILES = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "*.safetensors",
    "*.safetensors.index.json",
)


@dataclass(frozen=True)
class Checkpoint:
    """A folder in the Hugging Face layout; `name` is how the user calls the model."""

    name: str
    folder: Path
    config: dict[str, Any]

    @classmethod
    def open(cls, source: str | Path) -> Checkpoint:
        """Find `source` (a local folder or "builtin:tiny") and read its config.json, or raise ModelError."""
        name = str(source)
        if name.startswith("builtin:"):
            if name not in _BUILTIN:
                raise ModelError(f"no built-in model {name!r}; there is: {', '.join(_BUILTIN)}")
            folder = _BUILTIN[name]
        else:
            folder = Path(source)
            name = folder.resolve().name
        if not folder.is_dir():
            raise ModelError(f"{folder}: not a local folder with a model")
        path = folder / "config.json"
        if not path.is_file():
            raise ModelError(f"{folder}: no config.json, so not a model in the Hugging Face layout")
        return cls(name, folder, read_json(path))

    @property
    def calibration(self) -> Path | None:
        """The model's own calibration of its pruning, where there is one beside the weights."""
        path = self.folder / OWN_FILE
        return path if path.is_file() else None

    def content_hash(self) -> str:
        """sha256 (hex) over the names and contents of the weight, config and tokenizer files."""
        digest = hashlib.sha256()
        for path in sorted({p for pattern in CONTENT_FILES for p in self.folder.glob(pattern)}):
            with path.open("rb") as file:
                digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
        return digest.hexdigest()

    def load_weights(self, model_class: type[PreTrainedModel], dtype: torch.dtype) -> PreTrainedModel:
        """Build the model on the CPU and fill every parameter from safetensors files, or raise ModelError."""
        if not any(self.folder.glob("*.safetensors")):
            pickled = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in self.folder.glob(pattern))
            found = f"; pickled weights ({pickled[0]}) are never loaded" if pickled else ""
            raise ModelError(f"{self.folder}: no .safetensors weights{found}")
        verbosity, has_bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
        transformers_logging.set_verbosity(transformers_logging.CRITICAL)  # its report is a table; ours is one line
        transformers_logging.disable_progress_bar()
        try:
            model, report = model_class.from_pretrained(
                self.folder,
                dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # so that they arrive in the report, where they are refused
                output_loading_info=True,
            )
        except (SafetensorError, OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
            raise ModelError(f"{self.folder}: the weights cannot be loaded ({one_line(error)})") from error
        finally:
            transformers_logging.set_verbosity(verbosity)
            if has_bar:
                transformers_logging.enable_progress_bar()
        self._refuse_mismatches(report)
        return model.eval().requires_grad_(False)

    def _refuse_mismatches(self, report: dict[str, Any]) -> None:
        """A weight that is missing, left over or of another shape means that this is another model."""
        for key, shape, expected in sorted(report["mismatched_keys"]):
            raise ModelError(f"{self.folder}: weight {key} has shape {list(shape)}, the model wants {list(expected)}")
        for kind, problem in (("missing_keys", "is missing"), ("unexpected_keys", "is not part of the model")):
            keys = sorted(report[kind])
            if keys:
                more = f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""
                raise ModelError(f"{self.folder}: weight {keys[0]} {problem}{more}")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; ModelError if it holds something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path}: not a JSON object")
    return content


def one_line(error: BaseException) -> str:
    """An exception's message without its line breaks, cut to what fits a terminal line or two."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
