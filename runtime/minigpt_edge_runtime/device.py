"""What machine this is, and how much memory this process used."""

from __future__ import annotations

import os
import platform
import subprocess
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
        # ru_maxrss survives exec: a process started by a large one would report its parent's peak
        known = linux_memory("self").get("VmHWM")
        if known is not None:
            return known
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB


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
