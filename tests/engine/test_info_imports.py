"""Asking what a model is takes none of what takes seconds to import: jobs and checks do it before anything starts."""

import subprocess
import sys
from pathlib import Path

from tests.engine.checkpoint_families import WRITERS

SCRIPT = """
import sys
from pipeline.engine import model_info
for folder in sys.argv[1:]:
    print(model_info(folder, "cpu", "float32").default_frames)
heavy = {"transformers.modeling_utils", "torch._dynamo", "torch.distributed.tensor", "torchao", "sympy"}
print(*heavy & {*sys.modules})
"""


def test_no_model_class_and_no_compiler_is_imported(tmp_path):
    folders = [tmp_path / name for name in WRITERS]
    for folder, write in zip(folders, WRITERS.values(), strict=True):
        folder.mkdir()
        write(folder)
    command = [sys.executable, "-c", SCRIPT, *map(str, folders)]
    result = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["32", "64", "32", ""]
