"""The device description of a latency report."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path
from typing import Any

from minigpt_edge_runtime.cpus import SYSTEM, governor, max_clock_mhz, physical_cores, read_line, sysctl
from minigpt_edge_runtime.device import device_info

# How Linux (/proc/cpuinfo) spells each feature, then how macOS (sysctl) does.
FEATURES = {
    "avx2": ("avx2", "hw.optional.avx2_0"),
    "fma": ("fma", "hw.optional.fma"),
    "f16c": ("f16c", "hw.optional.f16c"),
    "avx512f": ("avx512f", "hw.optional.avx512f"),
    "avx512_vnni": ("avx512_vnni", "hw.optional.avx512vnni"),
    "avx512_bf16": ("avx512_bf16", "hw.optional.avx512bf16"),
    "avx_vnni": ("avx_vnni", "hw.optional.avx_vnni"),
    "amx_int8": ("amx_int8", "hw.optional.amx_int8"),
    "neon": ("asimd", "hw.optional.neon"),
    "fp16": ("asimdhp", "hw.optional.arm.FEAT_FP16"),
    "dotprod": ("asimddp", "hw.optional.arm.FEAT_DotProd"),
    "i8mm": ("i8mm", "hw.optional.arm.FEAT_I8MM"),
    "sve": ("sve", "hw.optional.arm.FEAT_SVE"),
}


def describe_device(root: Path = SYSTEM) -> dict[str, Any]:
    """`device_info`, and what else decides how fast a model runs; unknown facts are None.

    Args:
        root: where /proc and /sys are.

    Returns:
        also "features" (name -> whether the CPU has it), "physical_cores" this process may use, "governor",
        "power_source" ("mains" or "battery") and "clock_mhz", the highest.
    """
    return {
        **device_info(),
        "features": cpu_features(root),
        "physical_cores": physical_cores(root),
        "governor": governor(root),
        "power_source": power_source(root),
        "clock_mhz": max_clock_mhz(root),
    }


def cpu_features(root: Path = SYSTEM) -> dict[str, bool | None]:
    """Which instructions for fast products of matrices the CPU has; None where the system does not tell."""
    if platform.system() == "Darwin":
        return {name: sysctl(key) == "1" for name, (_, key) in FEATURES.items()}
    flags = _flags(root)
    return {name: flag in flags if flags else None for name, (flag, _) in FEATURES.items()}


def power_source(root: Path = SYSTEM) -> str | None:
    """Where the power comes from now; None on a machine that does not say, as most without a battery."""
    if platform.system() == "Darwin":
        return _macos_power_source()
    supplies = [
        folder
        for folder in sorted((root / "sys/class/power_supply").glob("*"))
        if read_line(folder / "scope") != "Device"  # a mouse's battery
    ]
    states = {read_line(folder / "status") for folder in supplies}
    if "Discharging" in states:
        return "battery"
    plugged = any(read_line(f / "online") == "1" for f in supplies)
    return "mains" if plugged or states & {"Charging", "Full", "Not charging"} else None


def _flags(root: Path) -> set[str]:
    try:
        lines = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return set(value.split())
    return set()


def _macos_power_source() -> str | None:
    try:
        done = subprocess.run(["pmset", "-g", "batt"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return None
    return "battery" if "Battery Power" in done.stdout else "mains" if "AC Power" in done.stdout else None
