"""Where a figure comes from: every result in benchmarks/results says it."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any


def provenance() -> dict[str, Any]:
    """{"commit": sha, None outside a checkout; "date": YYYY-MM-DD; "device": as in latency reports}."""
    from minigpt_edge_runtime.device import device_info

    command = ["git", "rev-parse", "HEAD"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
        commit = said.stdout.strip() or None
    except OSError:  # no git
        commit = None
    return {"commit": commit, "date": time.strftime("%Y-%m-%d"), "device": device_info()}
