"""What is read from /proc and /sys, from folders that look like them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from minigpt_edge_runtime.bench.energy import find_meter
from minigpt_edge_runtime.bench.fresh import run_fresh
from minigpt_edge_runtime.bench.hardware import cpu_features, describe_device, power_source
from minigpt_edge_runtime.cpus import governor, max_clock_mhz, pin_order

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc and /sys")
X86 = "processor\t: 0\nmodel name\t: CPU\nflags\t\t: fpu avx2 fma f16c avx512f avx512_vnni\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd asimdhp asimddp i8mm\n"


def put(root: Path, **files: str | int) -> None:
    """Write files below `root`; two underscores in a name are a slash, three a dash."""
    for name, content in files.items():
        path = root / name.replace("___", "-").replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")


def put_cpu(root: Path, cpu: int, siblings: str, **facts: int) -> None:
    folder = root / f"sys/devices/system/cpu/cpu{cpu}"
    put(
        folder,
        topology__physical_package_id=0,
        topology__core_id=cpu,
        topology__thread_siblings_list=siblings,
    )
    put(folder, **facts)


def test_threads_go_to_different_cores_the_fast_ones_first(tmp_path: Path) -> None:
    for cpu, siblings in enumerate(["0,1", "0,1", "2,3", "2,3"]):  # two fast cores of two threads
        put_cpu(
            tmp_path,
            cpu,
            siblings,
            cpufreq__cpuinfo_max_freq=4_800_000,
            cpufreq__scaling_governor="powersave",
        )
    for cpu in (4, 5):  # two slow cores
        put_cpu(
            tmp_path,
            cpu,
            str(cpu),
            cpufreq__cpuinfo_max_freq=3_600_000,
            cpufreq__scaling_governor="schedutil",
        )
    assert pin_order(range(6), tmp_path) == [0, 2, 4, 5, 1, 3]
    assert pin_order([1, 3, 5], tmp_path) == [1, 3, 5]
    assert max_clock_mhz(tmp_path) == 4800 and governor(tmp_path) == "powersave, schedutil"


def test_big_cores_come_before_little_ones(tmp_path: Path) -> None:
    for cpu, capacity in enumerate([400, 400, 1024, 1024]):
        put_cpu(tmp_path, cpu, str(cpu), cpu_capacity=capacity)
    assert pin_order(range(4), tmp_path) == [2, 3, 0, 1]


def test_cpus_of_an_unknown_machine_keep_their_order(tmp_path: Path) -> None:
    assert pin_order({3, 1, 2}, tmp_path) == [1, 2, 3]
    assert max_clock_mhz(tmp_path) is None and governor(tmp_path) is None


@linux
def test_features_of_x86_and_arm(tmp_path: Path) -> None:
    assert set(cpu_features(tmp_path).values()) == {None}
    put(tmp_path, proc__cpuinfo=X86)
    features = cpu_features(tmp_path)
    assert features["avx2"] and features["avx512_vnni"] and features["amx_int8"] is False
    assert features["neon"] is False and features["dotprod"] is False
    put(tmp_path, proc__cpuinfo=ARM)
    features = cpu_features(tmp_path)
    assert features["neon"] and features["dotprod"] and features["i8mm"] and features["avx2"] is False


@linux
def test_power_source(tmp_path: Path) -> None:
    supplies = tmp_path / "sys/class/power_supply"
    assert power_source(tmp_path) is None
    put(supplies, mouse__scope="Device", mouse__status="Discharging")
    assert power_source(tmp_path) is None
    put(supplies, BAT0__status="Discharging", AC__online=0)
    assert power_source(tmp_path) == "battery"
    put(supplies, BAT0__status="Charging")
    assert power_source(tmp_path) == "mains"
    put(supplies, BAT0__status="Unknown", AC__online=1)
    assert power_source(tmp_path) == "mains"


@linux
def test_the_device_is_described() -> None:
    device = describe_device()
    assert (
        device["architecture"] and device["memory_bytes"] > 1e8 and device["cores"] >= device["cores_usable"]
    )
    assert device["physical_cores"] is None or 1 <= device["physical_cores"] <= device["cores_usable"]


def test_rapl_adds_packages_and_memory_and_survives_the_counters_end(tmp_path: Path) -> None:
    zones = tmp_path / "sys/class/powercap"
    for zone, name in {"0": "package-0", "0:0": "core", "0:1": "dram", "1": "psys"}.items():
        folder = zones / f"intel-rapl:{zone}"
        put(folder, name=name, energy_uj=1_000_000, max_energy_range_uj=10_000_000)
    meter = find_meter(tmp_path)
    assert meter is not None and meter.source == "rapl"
    before = meter.read()
    put(zones / "intel-rapl:0", energy_uj=4_000_000)
    put(zones / "intel-rapl:0:0", energy_uj=3_000_000)
    put(zones / "intel-rapl:0:1", energy_uj=1_500_000)
    assert meter.joules(before, meter.read()) == pytest.approx(3.5)
    before = meter.read()
    put(zones / "intel-rapl:0", energy_uj=500_000)
    assert meter.joules(before, meter.read()) == pytest.approx(6.5)


def test_a_battery_counts_only_while_it_discharges(tmp_path: Path) -> None:
    battery = tmp_path / "sys/class/power_supply/BAT0"
    assert find_meter(tmp_path) is None
    put(battery, status="Discharging", power_now=10_000_000)
    meter = find_meter(tmp_path)
    assert meter is not None and meter.source == "battery"
    (start, watts), (end, _) = meter.read(), meter.read()
    assert watts == 10 and meter.joules([start, 10.0], [start + 2, 20.0]) == 30 and end >= start
    (battery / "power_now").unlink()
    put(battery, current_now=2_000_000, voltage_now=12_000_000)
    assert meter.read()[1] == pytest.approx(24)
    put(battery, status="Charging")
    assert find_meter(tmp_path) is None


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no pinning here")
def test_bandwidth_is_the_best_pass_and_pins_only_its_own_process() -> None:
    before = os.sched_getaffinity(0)
    measured = run_fresh("bandwidth", threads=1)
    assert os.sched_getaffinity(0) == before
    assert measured["read_bandwidth_bytes_per_second"] == max(measured["samples"]) > 1e8
    assert measured["threads"] == 1
