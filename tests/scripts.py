"""Run a script of the tests in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path


def run_script(script: Path, **environment: str) -> subprocess.CompletedProcess:
    """With this tree on its path and these variables beside ours."""
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, script],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
