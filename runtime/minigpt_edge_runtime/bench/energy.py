"""Energy used while something runs, where the machine counts it: Intel's RAPL, or a discharging battery."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from minigpt_edge_runtime.cpus import SYSTEM, read_int, read_line


class Meter(Protocol):
    """Counts the energy between two readings."""

    @property
    def source(self) -> str: ...

    def read(self) -> list[float]: ...

    def joules(self, before: list[float], after: list[float]) -> float: ...


def find_meter(root: Path = SYSTEM) -> Meter | None:
    """What can count energy here, None if nothing can (RAPL may be readable by root alone)."""
    zones = []
    for folder in sorted((root / "sys/class/powercap").glob("intel-rapl:*")):
        name = read_line(folder / "name") or ""
        # A package includes its cores; dram is counted beside it, and psys includes everything.
        if name.startswith("package") or name == "dram":
            zones.append(folder)
    if zones and all(read_int(zone / "energy_uj") is not None for zone in zones):
        return Rapl(zones)
    for folder in sorted((root / "sys/class/power_supply").glob("BAT*")):
        if read_line(folder / "status") == "Discharging" and _watts(folder) is not None:
            return Battery(folder)
    return None


@dataclass(frozen=True)
class Rapl:
    """The processor packages' own counters, and the memory's where it has one. Other programs count too."""

    zones: list[Path]
    source: str = "rapl"

    def read(self) -> list[float]:
        """Microjoules of each zone since some time."""
        return [float(read_int(zone / "energy_uj") or 0) for zone in self.zones]

    def joules(self, before: list[float], after: list[float]) -> float:
        total = 0.0
        for zone, start, end in zip(self.zones, before, after, strict=True):
            if end < start:  # the counter began anew
                end += read_int(zone / "max_energy_range_uj") or 0
            total += max(end - start, 0.0)
        return total / 1e6


@dataclass(frozen=True)
class Battery:
    """The battery's power, taken as the mean of both readings: the whole machine, its screen included."""

    folder: Path
    source: str = "battery"

    def read(self) -> list[float]:
        """Seconds and watts."""
        return [time.perf_counter(), _watts(self.folder) or 0.0]

    def joules(self, before: list[float], after: list[float]) -> float:
        return (after[0] - before[0]) * (before[1] + after[1]) / 2


def _watts(folder: Path) -> float | None:
    power = read_int(folder / "power_now")
    if power is not None:
        return abs(power) / 1e6
    current, voltage = read_int(folder / "current_now"), read_int(folder / "voltage_now")
    return None if current is None or voltage is None else abs(current) * voltage / 1e12
