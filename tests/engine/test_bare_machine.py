"""The engine needs neither a cluster nor a decoder nor object storage."""

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys
for name in ("ray", "decord", "s3fs", "fsspec", "pyarrow", "av", "duckdb", "typer", "rich", "torchvision", "PIL"):
    sys.modules[name] = None  # importing it raises ImportError, as where it is not installed
import numpy as np
from pruning import PruningConfig
from pipeline.engine import Request, VideoLLM
llm = VideoLLM.load(sys.argv[1], device="cpu")
frames = np.zeros((2, 20, 30, 3), dtype=np.uint8)
[answer] = llm.answer([Request(frames=frames, prompt="what", max_new_tokens=3)], PruningConfig(retention=0.5))
print(len(answer.token_ids))
print(*sorted(name for name in sys.modules if name.startswith("pipeline.") and not name.startswith("pipeline.engine")))
"""


def test_the_engine_runs_where_only_torch_and_transformers_are(grouped_folder):
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", SCRIPT, str(grouped_folder)]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["3", "pipeline.frame_size pipeline.resize"]
