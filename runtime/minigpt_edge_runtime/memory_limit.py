"""A limit on the memory of a process that measures.

What counts is memory that is resident or swapped out, as the kernel adds it up, its high-water mark included,
so that a peak between two looks is not missed: a measurement that ends well never had more. Pages of the
mapped model file count too; a device could drop them and read them again, slowly, but here the model is asked
to fit. Address space that was merely reserved does not count: RLIMIT_AS would count it, which is nearly three
times as much for a small model, and a control group would need rights that few users have. The process is
looked at every 10 ms (60 microseconds of another CPU) and ended when it has more, on Linux, which alone shows
another process's memory; elsewhere its peak is judged at its end.
"""

from __future__ import annotations

import re
import sys

from minigpt_edge_runtime.device import linux_memory
from minigpt_edge_runtime.errors import EdgeError, UsageError

LOOK_EVERY = 0.01  # seconds
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


def parse_size(text: str) -> int:
    """Bytes of a size like 512M, 512MB (both 512,000,000), 512MiB or 1.5G.

    Raises:
        UsageError: it is none.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMG]?I?)B?", text.strip().upper())
    if match is None or match[2] not in _UNITS or float(match[1]) <= 0:
        raise UsageError(f"{text!r} is not a size", "write it like 512M or 512MiB")
    return int(float(match[1]) * _UNITS[match[2]])


def memory_used(process: int) -> int:
    """The most bytes a process is known to have had; 0 where the system does not show it."""
    if not sys.platform.startswith("linux"):
        return 0
    memory = linux_memory(process)
    return max(memory.get("VmHWM", 0), memory.get("VmRSS", 0) + memory.get("VmSwap", 0))


def check_used(used: int, limit: int, doing: str) -> None:
    """EdgeError if a process had `used` bytes, more than `limit`, while it was `doing` something."""
    if used > limit:
        raise EdgeError(
            f"this needs more than {limit / 1e6:,.0f} MB: it had {used / 1e6:,.0f} MB while {doing}",
            "choose a smaller model file, shorter prompts and depths, or a higher --memory-limit",
        )
