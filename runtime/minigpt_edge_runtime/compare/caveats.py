"""What differs between reports and what that means for reading their ratios."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from minigpt_edge_runtime.compare.reports import Data, Report, at

_NOISY = 0.1  # a quiet machine stays below 3 %
_MANY = 4  # so many reports with one value are counted, not listed


@dataclass(frozen=True)
class Caveat:
    """A difference: its subject, the values with the reports that have them, what to make of it."""

    about: str
    values: str
    meaning: str


@dataclass(frozen=True)
class _Check:
    """A fact that should not differ; None is unknown, and of a list only what is not shared is shown."""

    about: str
    read: Callable[[Data], Any]
    meaning: str


def find_caveats(reports: Sequence[Report]) -> list[Caveat]:
    """What to know before reading the ratios, most important first; unknown (null) facts are not compared."""
    one_machine = _agree(reports, _machine)
    checks = [*_MODEL, _Check("device", _machine, "ratios compare the machines too")]
    threads = "ratios show how speed scales with threads" if one_machine else "ratios mix machine and threads"
    checks += [_Check("threads", at("settings.n_threads"), threads)]
    if one_machine:
        checks.append(_FEATURES)
    checks.append(_Check("runtime", at("runtime.name"), _ENGINES))
    if _agree(reports, at("runtime.name")):
        checks += _RUNTIME
    checks += _SURROUNDINGS
    checks.append(_CORES if _agree(reports, at("settings.n_threads")) else _PINNING)
    checks += _SETTINGS
    found = [_twice(reports), _noisy(reports), *(_difference(reports, check) for check in checks)]
    return [caveat for caveat in found if caveat is not None]


def _agree(reports: Sequence[Report], read: Callable[[Data], Any]) -> bool:
    return len({read(report.data) for report in reports}) == 1


def _difference(reports: Sequence[Report], check: _Check) -> Caveat | None:
    read = [(report.label, check.read(report.data)) for report in reports]
    known = [(label, value) for label, value in read if value is not None]
    if known and isinstance(known[0][1], list):
        shared = set.intersection(*(set(value) for _, value in known))
        known = [(label, ", ".join(v for v in value if v not in shared) or "–") for label, value in known]
    having: dict[str, list[str]] = {}
    for label, value in known:
        having.setdefault(f"{value:,}" if isinstance(value, int) else str(value), []).append(label)
    if len(having) < 2:
        return None
    return Caveat(
        check.about, "; ".join(f"{_who(names)}: {value}" for value, names in having.items()), check.meaning
    )


def _who(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) < _MANY else f"{len(names)} reports"


def _twice(reports: Sequence[Report]) -> Caveat | None:
    """Reports that are the same measurement."""
    having: dict[str, list[str]] = {}
    for report in reports:
        having.setdefault(json.dumps(report.data, sort_keys=True), []).append(report.label)
    groups = [" = ".join(names) for names in having.values() if len(names) > 1]
    if not groups:
        return None
    meaning = "one measurement given twice: its ratio of 1 says nothing about the noise between runs"
    return Caveat("same report", "; ".join(groups), meaning)


def _noisy(reports: Sequence[Report]) -> Caveat | None:
    """Reports whose repetitions scatter so much that something else was running."""
    scatter = {
        report.label: max(
            e["stddev_ts"] / e["avg_ts"] for e in report.data["prefill"] + report.data["decode"]
        )
        for report in reports
    }
    noisy = [f"{label}: up to {share:.0%}" for label, share in scatter.items() if share > _NOISY]
    if not noisy:
        return None
    meaning = "standard deviation between repetitions: other programs ran or the clock changed, measure again"
    return Caveat("noise", "; ".join(noisy), meaning)


def _lengths(name: str) -> Callable[[Data], str]:
    return lambda report: ", ".join(f"{value:,}" for value in report["settings"][name])


def _model_file(report: Data) -> str:
    return f"{report['artefact']['file']} (sha256 {report['artefact']['sha256'][:8]}…)"


def _machine(report: Data) -> str | None:
    device = report["device"]
    if device["cpu"] is None:
        return None
    cores = "" if device["cores"] is None else f", {device['cores']} cores"
    return f"{device['cpu']} ({device['architecture']}{cores})"


def _features(report: Data) -> list[str]:
    return sorted(name for name, has in report["device"]["features"].items() if has)


def _engine_build(report: Data) -> list[str] | None:
    """What llama.cpp says it was built for, like "AVX512 = 1"."""
    flags = report["runtime"].get("system_info")
    return None if flags is None else [part.strip() for part in str(flags).split("|") if part.strip()]


def _libraries(report: Data) -> list[str]:
    return [f"{name} {version}" for name, version in sorted(report["runtime"]["libraries"].items())]


def _pinned(report: Data) -> str:
    return "free to move" if report["settings"]["pinned_cpus"] is None else "pinned"


def _cores(report: Data) -> str:
    cpus = report["settings"]["pinned_cpus"]
    return "free to move" if cpus is None else f"on CPU {', '.join(map(str, cpus))}"


def _memory_limit(report: Data) -> str:
    limit = report["settings"]["memory_limit_bytes"]
    return "none" if limit is None else f"{limit / 1e6:,.0f} MB"


def _sample(report: Data) -> str | None:
    sample = (report["quality"] or {}).get("sample_sha256")
    return None if sample is None else f"sha256 {sample[:8]}…"


_SAMPLE = "bits per byte and accuracy on different texts can't be compared"
_WIDTH = "weights of another width: size, speed and quality move together, so read them together"
_MODEL = (
    _Check("model file", _model_file, "not the same artefact: ratios compare the models too"),
    _Check("quantization", at("artefact.quantization"), _WIDTH),
    _Check("held-out sample", _sample, _SAMPLE),
)
_ENGINES = "two engines: their kernels differ, and how they load the file, so load time and memory too"
_VERSIONS = "kernels change between versions: a difference may be theirs"
_RUNTIME = (
    _Check("runtime version", at("runtime.package"), _VERSIONS),
    _Check("engine build", _engine_build, "built for other CPU features: speed is not the model's alone"),
    _Check("libraries", _libraries, "seldom visible in these figures; the engine's own version matters more"),
)
_FEATURES = _Check(
    "CPU features", _features, "the same CPU shows other features (a virtual machine?): kernels differ"
)
_METERS = "a battery feeds the whole machine, RAPL counts the processor package"
_SURROUNDINGS = (
    _Check("power source", at("device.power_source"), "on battery a processor is clocked lower"),
    _Check("governor", at("device.governor"), "it sets the clock, and how fast it rises"),
    _Check("energy source", at("energy.source"), _METERS),
    _Check("profile", at("profile"), "another setup on purpose: see the settings that differ"),
)
_PINNING = _Check("pinning", _pinned, "threads that move lose their caches: token times spread more")
_CORES = _Check("pinning", _cores, "other cores can be slower ones, and free threads lose their caches")
_GENERATED = "a run reaches another depth, and p99 sees more or fewer tokens"
_REPEATED = "fewer repetitions give a wider spread, and below four no verdict"
_CACHE = "the cache is allocated for it, so memory differs"
_LIMITED = "near its limit a process loses cached pages of the file and slows down"
_MEASURED = "another version measured: the way it measures may have changed"
_SETTINGS = (
    _Check("prompt lengths", _lengths("prompt_lengths"), "only lengths in common have a row"),
    _Check("depths", _lengths("depths"), "only depths in common have a row"),
    _Check("tokens generated", at("settings.n_gen"), _GENERATED),
    _Check("repetitions", at("settings.repetitions"), _REPEATED),
    _Check("context length", at("settings.context_length"), _CACHE),
    _Check("memory limit", _memory_limit, _LIMITED),
    _Check("minigpt-edge-runtime", at("runtime.minigpt_edge_runtime"), _MEASURED),
)
