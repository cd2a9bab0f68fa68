"""The figures that are compared: where they are in a report, how they read, and which way is better."""

from __future__ import annotations

import statistics
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

from minigpt_edge_runtime.compare.ratio import (
    Better,
    Ratio,
    paired_answers_ratio,
    paired_sums_ratio,
    sampled_ratio,
    single_ratio,
)
from minigpt_edge_runtime.compare.reports import Data, Report, at

_TIMED = 0.01  # runs of the same thing differ by so much from process to process
_DERIVED = 0.05  # energy counters and the bandwidth figure are coarser


@dataclass(frozen=True)
class Metric(ABC):
    """One row of the comparison. `limit` is its name for --fail-if, None for rows that have no limit."""

    key: str
    name: str
    unit: str
    better: Better
    _: KW_ONLY
    condition: str = ""  # at which length, which percentile
    limit: str | None = None

    @property
    def label(self) -> str:
        """Like "decode, depth 512"."""
        return f"{self.name}, {self.condition}" if self.condition else self.name

    @abstractmethod
    def value(self, report: Data) -> float | None:
        """A report's figure, None if it has none."""

    @abstractmethod
    def ratio(self, reference: Data, other: Data) -> Ratio:
        """The figure of one report over the other's; called only where both have one."""


@dataclass(frozen=True, kw_only=True)
class _Sampled(Metric):
    """A figure with a sample per repetition: their median, unless `figure` says where the report has it."""

    samples: Callable[[Data], list[float]]
    figure: Callable[[Data], float | None] | None = None

    def value(self, report: Data) -> float | None:
        if self.figure is not None:
            return self.figure(report)
        return statistics.median(found) if (found := self.samples(report)) else None

    def ratio(self, reference: Data, other: Data) -> Ratio:
        figures = self.value(reference) or 0.0, self.value(other) or 0.0
        return sampled_ratio(*figures, self.samples(reference), self.samples(other), self.better, _TIMED)


@dataclass(frozen=True, kw_only=True)
class _Single(Metric):
    """A figure that a report holds one reading of, at `path`; ratios within `negligible` of 1 are noise."""

    path: str
    negligible: float = _TIMED

    def value(self, report: Data) -> float | None:
        return at(self.path)(report)

    def ratio(self, reference: Data, other: Data) -> Ratio:
        figures = self.value(reference) or 0.0, self.value(other) or 0.0
        return single_ratio(*figures, self.better, self.negligible)


class _Bits(Metric):
    """Bits per byte on held-out text, compared window by window."""

    def value(self, report: Data) -> float | None:
        return (report["quality"] or {}).get("bits_per_byte")

    def ratio(self, reference: Data, other: Data) -> Ratio:
        if not _same_text(reference, other):
            return Ratio(None, note="scored on different text")
        nll = [[window["nll"] for window in r["quality"]["per_window"]] for r in (reference, other)]
        return paired_sums_ratio(nll[0], nll[1])


class _Accuracy(Metric):
    """The share of multiple-choice questions answered right, compared question by question."""

    def value(self, report: Data) -> float | None:
        return _choice(report).get("accuracy")

    def ratio(self, reference: Data, other: Data) -> Ratio:
        if not _same_text(reference, other):
            return Ratio(None, note="asked different questions")
        ours, theirs = _choice(reference), _choice(other)
        return paired_answers_ratio(ours["accuracy"], theirs["accuracy"], ours["answers"], theirs["answers"])


def _choice(report: Data) -> dict[str, Any]:
    return (report["quality"] or {}).get("multiple_choice") or {}


def _same_text(reference: Data, other: Data) -> bool:
    """Whether both qualities were measured on one held-out sample."""
    samples = [(report["quality"] or {}).get("sample_sha256") for report in (reference, other)]
    return samples[0] is not None and samples[0] == samples[1]


@dataclass(frozen=True)
class Row:
    """A metric with every report's value and its ratio to the first's."""

    metric: Metric
    values: tuple[float | None, ...]
    ratios: tuple[Ratio, ...]  # of every report but the first


def compare_rows(reports: Sequence[Report]) -> list[Row]:
    """The rows of a comparison, those left out that no report has a value for."""
    rows = [_row(metric, [report.data for report in reports]) for metric in _metrics(reports)]
    return [row for row in rows if any(value is not None for value in row.values)]


def _row(metric: Metric, reports: list[Data]) -> Row:
    values = tuple(metric.value(report) for report in reports)
    ratios = tuple(
        Ratio(None, note="not measured")
        if value is None or values[0] is None
        else metric.ratio(reports[0], report)
        for report, value in zip(reports[1:], values[1:], strict=True)
    )
    return Row(metric, values, ratios)


def _metrics(reports: Sequence[Report]) -> list[Metric]:
    data = [report.data for report in reports]
    prompts, depths = lengths(data, "prefill", "n_prompt"), lengths(data, "decode", "n_depth")
    metrics: list[Metric] = [
        _Sampled("load", "load", "ms", "lower", limit="load", samples=lambda r: _ms(r["load"]))
    ]
    if prompts.common:
        metrics.append(_first_token(min(prompts.common)))
    last, shallow = max(prompts.common, default=None), min(depths.common, default=None)
    metrics += [_rate("prefill", n, "prefill" if n == last else None) for n in prompts.shown]
    metrics += [_rate("decode", n, "decode" if n == shallow else None) for n in depths.shown]
    if shallow is not None:
        metrics += [_token_time(shallow, "p50", limit="itl"), _token_time(shallow, "p99", limit=None)]
    return [*metrics, *_COSTS]


@dataclass(frozen=True)
class Lengths:
    """Prompt lengths or depths: those that all reports measured, those that at least two have rows for."""

    common: list[int]
    shown: list[int]


def lengths(reports: Sequence[Data], part: str, field: str) -> Lengths:
    """The lengths of a part that all reports have, and those that the first and another have."""
    measured = [{entry[field] for entry in report[part]} for report in reports]
    shared = measured[0] & set().union(*measured[1:])
    return Lengths(sorted(set.intersection(*measured)), sorted(shared))


_LENGTHS = {"prefill": ("n_prompt", "prompt"), "decode": ("n_depth", "depth")}


def entry(report: Data, part: str, length: int) -> Data | None:
    """The prefill at a prompt length, or the decode at a depth."""
    field, _ = _LENGTHS[part]
    return next((found for found in report[part] if found[field] == length), None)


def _ms(measured: Data | None) -> list[float]:
    """Milliseconds of each repetition."""
    return [nanoseconds / 1e6 for nanoseconds in (measured or {}).get("samples_ns") or []]


def _first_token(length: int) -> Metric:
    return _Sampled(
        f"ttft@{length}",
        "first token",
        "ms",
        "lower",
        condition=f"prompt {length:,}",
        limit="ttft",
        samples=lambda report: _ms(entry(report, "prefill", length)),
    )


def _rate(part: str, length: int, limit: str | None) -> Metric:
    """Tokens per second of prefill or decode."""
    return _Sampled(
        f"{part}@{length}",
        part,
        "tok/s",
        "higher",
        condition=f"{_LENGTHS[part][1]} {length:,}",
        limit=limit,
        samples=lambda report: list((entry(report, part, length) or {}).get("samples_ts") or []),
    )


def _token_time(depth: int, percentile: str, limit: str | None) -> Metric:
    def samples(report: Data) -> list[float]:
        # The tokens of a run depend on each other, so a run is one sample.
        runs = (entry(report, "decode", depth) or {}).get("itl_ns") or []
        return [_percentile(run, percentile) / 1e6 for run in runs if run]

    def figure(report: Data) -> float | None:
        found = entry(report, "decode", depth)
        return found["itl_ms"][percentile] if found else None

    return _Sampled(
        f"itl_{percentile}@{depth}",
        "between tokens",
        "ms",
        "lower",
        condition=percentile,
        limit=limit,
        samples=samples,
        figure=figure,
    )


def _percentile(values: Sequence[float], name: str) -> float:
    """Linearly interpolated, as the report's own percentiles are."""
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[int(name[1:]) - 1]


_COSTS = (
    _Single("memory", "peak memory", "MB", "lower", path="memory.peak_rss_bytes", limit="memory"),
    _Single("rss", "memory after load", "MB", "lower", path="memory.rss_after_load_bytes"),
    _Single("size", "file size", "MB", "lower", path="artefact.bytes", limit="size", negligible=0),
    _Bits("bits_per_byte", "bits per byte", "", "lower", limit="bits_per_byte"),
    _Accuracy("accuracy", "multiple choice", "%", "higher", limit="accuracy"),
    _Single(
        "energy",
        "energy per token",
        "mJ",
        "lower",
        path="energy.decode_joules_per_token",
        negligible=_DERIVED,
    ),
    _Single(
        "roofline", "share of roofline", "%", "higher", path="summary.roofline_share", negligible=_DERIVED
    ),
)

_SCALE = {"ms": 1.0, "tok/s": 1.0, "MB": 1e-6, "": 1.0, "%": 100.0, "mJ": 1000.0}


def value_text(value: float | None, unit: str) -> str:
    """A figure with its unit and as many digits as it deserves; "–" for None."""
    if value is None:
        return "–"
    scaled = value * _SCALE[unit]
    if unit == "":
        return f"{scaled:.4f}"
    digits = 0 if scaled >= 1000 else 1 if scaled >= 10 else 2
    return f"{scaled:,.{1 if unit in ('%', 'MB') else digits}f} {unit}"
