"""Where results lie and where a figure comes from: every file in benchmarks/results says it."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "results"


def provenance() -> dict[str, Any]:
    """{"commit": sha, None outside a checkout; "date": YYYY-MM-DD; "device": as in latency reports}."""
    from minigpt_edge_runtime.device import device_info

    command = ["git", "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
        commit = done.stdout.strip() or None
    except OSError:  # there is no git
        commit = None
    return {"commit": commit, "date": time.strftime("%Y-%m-%d"), "device": device_info()}


def write_result(path: Path, found: Mapping[str, Any]) -> None:
    """Write a result with its provenance."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({**found, **provenance()}, indent=2) + "\n", encoding="utf-8")
