"""Runs code where only the runtime can be imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import minigpt_edge_runtime

PACKAGE = Path(minigpt_edge_runtime.__file__).parent


BLOCK = """
import sys
for name in BLOCKED:
    sys.modules[name] = None
"""


ALONE = BLOCK.replace(
    "BLOCKED", "('torch', 'transformers', 'datasets', 'minigpt_edge', 'minigpt_edge_export', 'gguf')"
)


def python(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    command = [sys.executable, "-P", "-c", code, *args]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
