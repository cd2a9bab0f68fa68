"""What machine this is."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any

from minigpt_edge_runtime.cpus import sysctl
from minigpt_edge_runtime.engines.open import default_threads


def device_info() -> dict[str, Any]:
    """CPU model, architecture, cores, memory (bytes), operating system and Python; unknown facts are None."""
    return {
        "cpu": cpu_model(),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "cores_usable": default_threads(),
        "memory_bytes": memory_bytes(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def cpu_model() -> str | None:
    """The processor's name; None where the system does not tell."""
    if sys.platform.startswith("linux"):
        try:
            lines = Path("/proc/cpuinfo").read_text().splitlines()
        except OSError:
            return platform.processor() or None
        names = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
        return names[0] if names else platform.processor() or None
    if sys.platform == "darwin":
        return sysctl("machdep.cpu.brand_string")
    return platform.processor() or None


def memory_bytes() -> int | None:
    """The machine's memory, in bytes; None where the system does not tell."""
    if sys.platform == "win32":
        return None
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
