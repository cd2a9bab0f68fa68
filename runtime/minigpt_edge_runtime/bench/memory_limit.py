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

import math
import re
import sys
from collections.abc import Mapping

from minigpt_edge_runtime.device import linux_memory
from minigpt_edge_runtime.errors import EdgeError, UsageError

LOOK_EVERY = 0.01  # seconds
_PREFIXES = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}
_BYTES = {prefix + unit: size for prefix, size in _PREFIXES.items() for unit in ("", "B")}


def parse_size(text: str) -> int:
    """Bytes of a size like 40MB, 40M (both 40,000,000), 38MiB, 1.5G or 40000000; UsageError if it is none."""
    return parse_amount(text, _BYTES, "a size", "such as 40MB (millions of bytes), 38MiB, 1.2GB or 40000000")


def parse_amount(text: str, units: Mapping[str, int], what: str, examples: str) -> int:
    """A number with one of `units` (upper case), rounded; UsageError if it is not `what`, or is below 1."""
    found = re.fullmatch(r"(\d+(?:_\d+)*(?:\.\d+)?) ?([a-z]*)", text.strip(), re.IGNORECASE | re.ASCII)
    amount = float(found[1]) * units.get(found[2].upper(), 0) if found else 0.0
    if not 0.5 <= amount < math.inf:
        raise UsageError(f"{text!r} is not {what}", examples)
    return int(amount + 0.5)


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
