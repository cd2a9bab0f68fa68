"""Which CPUs are cores of their own, which are the fastest, and keeping this process on them."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from minigpt_edge_runtime.engines.open import default_threads

SYSTEM = Path("/")


def physical_cores(root: Path = SYSTEM) -> int | None:
    """Physical cores among the CPUs this process may use; None where the system does not tell."""
    if hasattr(os, "sched_getaffinity"):
        cores = {_core(root, cpu) for cpu in os.sched_getaffinity(0)}
        return None if None in cores else len(cores)
    count = sysctl("hw.physicalcpu") if platform.system() == "Darwin" else None
    return int(count) if count else None


def default_laptop_threads() -> int:
    """Physical cores this process may use, or all its CPUs where the cores are not known."""
    return physical_cores() or default_threads()


def pin(threads: int, root: Path = SYSTEM) -> list[int] | None:
    """Keep this process on `threads` CPUs: the fastest, and no two of one core while others are free.

    Returns:
        The CPUs, or None where the system does not allow it.
    """
    if not hasattr(os, "sched_setaffinity"):
        return None
    chosen = sorted(pin_order(os.sched_getaffinity(0), root)[:threads])
    try:
        os.sched_setaffinity(0, chosen)
    except OSError:
        return None
    return chosen


def pin_order(cpus: Iterable[int], root: Path = SYSTEM) -> list[int]:
    """`cpus`, first one of every core, fast cores before slow ones, then the second threads of the cores."""
    seen: dict[object, int] = {}
    ranked = []
    for cpu in sorted(cpus):
        core = _core(root, cpu) or cpu
        seen[core] = seen.get(core, -1) + 1
        capacity, clock = _speed(root, cpu)
        ranked.append((seen[core], -capacity, -clock, cpu))
    return [cpu for *_, cpu in sorted(ranked)]


def max_clock_mhz(root: Path = SYSTEM) -> int | None:
    """The highest clock any CPU can reach."""
    clocks = [read_int(path) for path in _cpu_files(root, "cpufreq/cpuinfo_max_freq")]
    known = [clock for clock in clocks if clock is not None]
    return max(known) // 1000 if known else None


def governor(root: Path = SYSTEM) -> str | None:
    """The frequency governors in use."""
    names = {read_line(path) for path in _cpu_files(root, "cpufreq/scaling_governor")} - {None}
    return ", ".join(sorted(str(name) for name in names)) or None


def read_line(path: Path) -> str | None:
    """A small file's text without the space around it, None if it can't be read or is empty."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:
        return None


def read_int(path: Path) -> int | None:
    """A small file's number, None if it has none."""
    with suppress(TypeError, ValueError):
        return int(read_line(path))  # type: ignore[arg-type]
    return None


def sysctl(name: str) -> str | None:
    """A value of macOS's sysctl, None if there is none."""
    try:
        done = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, check=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _cpu_folder(root: Path) -> Path:
    return root / "sys/devices/system/cpu"


def _cpu_files(root: Path, name: str) -> list[Path]:
    return sorted(_cpu_folder(root).glob(f"cpu[0-9]*/{name}"))


def _core(root: Path, cpu: int) -> tuple[str, str] | None:
    topology = _cpu_folder(root) / f"cpu{cpu}/topology"
    package, core = read_line(topology / "physical_package_id"), read_line(topology / "core_id")
    # Threads of one core list the same siblings; core_id alone repeats across dies.
    siblings = read_line(topology / "thread_siblings_list") or core
    return (package, siblings) if package and siblings else None


def _speed(root: Path, cpu: int) -> tuple[int, int]:
    """What Linux says of a CPU's capacity (Arm) and clock (x86), 0 where it says nothing."""
    folder = _cpu_folder(root) / f"cpu{cpu}"
    return read_int(folder / "cpu_capacity") or 0, read_int(folder / "cpufreq/cpuinfo_max_freq") or 0
