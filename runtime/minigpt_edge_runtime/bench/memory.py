"""The memory of a process: how much it has, the most it ever had (its peak RSS), and a limit on that.

`measure.measure_latency` reads all three in a process of its own (`fresh.run_fresh`), where the peak is the
model's.

What the limit counts is memory that is resident or swapped out, as the kernel counts it, its high-water mark
included, so that a peak between two looks is not missed: a measurement that ends well never had more. Pages
of the mapped model file count too; a device could drop them and read them again, slowly, but here the model
is asked to fit. Address space that was merely reserved does not count: RLIMIT_AS would count it, which is
nearly three times as much for a small model, and a control group would need rights that few users have. The
process is looked at every 10 ms (60 microseconds of another CPU) and ended when it has more, on Linux, which
alone shows another process's memory; elsewhere its peak is judged at its end.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from minigpt_edge_runtime.errors import EdgeError, UsageError

LOOK_EVERY = 0.01  # seconds
_PREFIXES = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}
_BYTES = {prefix + unit: size for prefix, size in _PREFIXES.items() for unit in ("", "B")}


def rss_bytes() -> int | None:
    """The resident memory of this process now, in bytes; None where the system does not tell."""
    if sys.platform == "win32":
        return _windows_memory("WorkingSetSize")
    if sys.platform.startswith("linux"):
        return linux_memory("self").get("VmRSS")
    done = subprocess.run(["ps", "-o", "rss=", "-p", str(os.getpid())], capture_output=True, text=True)
    return int(done.stdout) * 1024 if done.stdout.strip().isdigit() else None


def linux_memory(process: int | str) -> dict[str, int]:
    """What /proc/PID/status says of a process's memory, in bytes; empty if the process is gone."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return {}
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith(" kB")}


def peak_rss_bytes() -> int | None:
    """The most resident memory this process ever had, in bytes; None where the system does not tell."""
    if sys.platform == "win32":
        return _windows_memory("PeakWorkingSetSize")
    import resource

    if sys.platform.startswith("linux"):
        # VmHWM begins with this program; ru_maxrss survives exec and may be the peak of the parent process.
        known = linux_memory("self").get("VmHWM")
        if known is not None:
            return known
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB


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


def _windows_memory(field: str) -> int | None:
    if sys.platform != "win32":
        return None
    import ctypes
    from ctypes import wintypes

    names = "PeakWorkingSetSize WorkingSetSize QuotaPeakPagedPoolUsage QuotaPagedPoolUsage "
    names += "QuotaPeakNonPagedPoolUsage QuotaNonPagedPoolUsage PagefileUsage PeakPagefileUsage"

    class Counters(ctypes.Structure):
        _fields_ = [("cb", wintypes.DWORD), ("PageFaultCount", wintypes.DWORD)] + [
            (n, ctypes.c_size_t) for n in names.split()
        ]

    counters = Counters()
    counters.cb = ctypes.sizeof(counters)
    ctypes.windll.kernel32.GetCurrentProcess.restype = wintypes.HANDLE
    process = ctypes.windll.kernel32.GetCurrentProcess()
    good = ctypes.windll.psapi.GetProcessMemoryInfo(
        wintypes.HANDLE(process), ctypes.byref(counters), counters.cb
    )
    return int(getattr(counters, field)) if good else None
