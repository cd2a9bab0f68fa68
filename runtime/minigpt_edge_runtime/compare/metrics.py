"""The figures that are compared: where they are in a report, how they read, and which way is better."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from minigpt_edge_runtime.compare.ratio import (
    Better,
    Ratio,
    paired_answers_ratio,
    paired_sums_ratio,
    sampled_ratio,
    single_ratio,
)
from minigpt_edge_runtime.compare.reports import Report

_TIMED = 0.01  # runs of the same thing differ by so much from process to process
_DERIVED = 0.05  # energy counters and the bandwidth figure are coarser

Value = Callable[[dict[str, Any]], float | None]
Pair = Callable[[dict[str, Any], dict[str, Any]], Ratio]


@dataclass(frozen=True)
class Metric:
    """One row of the comparison.

    `value` gives a report's figure or None; `ratio` is called only where both reports have one.
    `limit` is its name for --fail-if, None for rows that have no limit.
    """

    key: str
    name: str
    condition: str  # at which length, which percentile; "" for figures without
    unit: str
    better: Better
    value: Value
    ratio: Pair
    limit: str | None = None

    @property
    def label(self) -> str:
        """Like "decode, depth 512"."""
        return f"{self.name}, {self.condition}" if self.condition else self.name


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


def _row(metric: Metric, reports: list[dict[str, Any]]) -> Row:
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
    first, last = min(prompts.common, default=None), max(prompts.common, default=None)
    shallow = min(depths.common, default=None)
    metrics = [_sampled("load", "load", "", "ms", "lower", lambda r: _times(r["load"]), limit="load")]
    if first is not None:
        metrics.append(_ttft(first))
    metrics += [_prefill(n, limit="prefill" if n == last else None) for n in prompts.shown]
    metrics += [_decode(n, limit="decode" if n == shallow else None) for n in depths.shown]
    if shallow is not None:
        metrics += [_token_time(shallow, "p50", limit="itl"), _token_time(shallow, "p99", limit=None)]
    return [*metrics, *_COSTS]


@dataclass(frozen=True)
class Lengths:
    """Prompt lengths or depths: those that all reports measured, those that at least two have rows for."""

    common: list[int]
    shown: list[int]


def lengths(reports: Sequence[dict[str, Any]], part: str, field: str) -> Lengths:
    """The lengths of a part that all reports have, and those that the first and another have."""
    measured = [{entry[field] for entry in report[part]} for report in reports]
    shared = measured[0] & set().union(*measured[1:])
    return Lengths(sorted(set.intersection(*measured)), sorted(shared))


def entry(report: dict[str, Any], part: str, field: str, length: int) -> dict[str, Any] | None:
    """The prefill or decode measurement at one length."""
    return next((found for found in report[part] if found[field] == length), None)


def _times(measured: dict[str, Any] | None) -> list[float]:
    """Milliseconds of each repetition."""
    return [nanoseconds / 1e6 for nanoseconds in (measured or {}).get("samples_ns") or []]


def _rates(measured: dict[str, Any] | None) -> list[float]:
    return list((measured or {}).get("samples_ts") or [])


Samples = Callable[[dict[str, Any]], list[float]]


def _sampled(
    key: str,
    name: str,
    condition: str,
    unit: str,
    better: Better,
    samples: Samples,
    value: Value | None = None,
    limit: str | None = None,
) -> Metric:
    """A metric with a sample per repetition; its value is their median unless `value` says otherwise."""

    def median(report: dict[str, Any]) -> float | None:
        return statistics.median(found) if (found := samples(report)) else None

    read = value or median

    def ratio(reference: dict[str, Any], other: dict[str, Any]) -> Ratio:
        figures = read(reference) or 0.0, read(other) or 0.0
        return sampled_ratio(*figures, samples(reference), samples(other), better, _TIMED)

    return Metric(key, name, condition, unit, better, read, ratio, limit)


def _ttft(length: int) -> Metric:
    def samples(report: dict[str, Any]) -> list[float]:
        return _times(entry(report, "prefill", "n_prompt", length))

    condition = f"prompt {length:,}"
    return _sampled(f"ttft@{length}", "first token", condition, "ms", "lower", samples, limit="ttft")


def _prefill(length: int, limit: str | None) -> Metric:
    def samples(report: dict[str, Any]) -> list[float]:
        return _rates(entry(report, "prefill", "n_prompt", length))

    condition = f"prompt {length:,}"
    return _sampled(f"prefill@{length}", "prefill", condition, "tok/s", "higher", samples, limit=limit)


def _decode(depth: int, limit: str | None) -> Metric:
    def samples(report: dict[str, Any]) -> list[float]:
        return _rates(entry(report, "decode", "n_depth", depth))

    condition = f"depth {depth:,}"
    return _sampled(f"decode@{depth}", "decode", condition, "tok/s", "higher", samples, limit=limit)


def _token_time(depth: int, percentile: str, limit: str | None) -> Metric:
    def samples(report: dict[str, Any]) -> list[float]:
        # the tokens of a run depend on each other, so a run is one sample
        runs = (entry(report, "decode", "n_depth", depth) or {}).get("itl_ns") or []
        return [_percentile(run, percentile) / 1e6 for run in runs if run]

    def value(report: dict[str, Any]) -> float | None:
        found = entry(report, "decode", "n_depth", depth)
        return found["itl_ms"][percentile] if found else None

    key = f"itl_{percentile}@{depth}"
    return _sampled(key, "between tokens", percentile, "ms", "lower", samples, value, limit)


def _percentile(values: Sequence[float], name: str) -> float:
    """Linearly interpolated, as the report's own percentiles are."""
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[int(name[1:]) - 1]


def _single(
    key: str,
    name: str,
    unit: str,
    better: Better,
    *path: str,
    negligible: float = 0.0,
    limit: str | None = None,
) -> Metric:
    """A metric that a report holds one reading of, at `path`."""

    def value(report: dict[str, Any]) -> float | None:
        at: Any = report
        for step in path:
            at = None if at is None else at[step]
        return at

    def ratio(reference: dict[str, Any], other: dict[str, Any]) -> Ratio:
        return single_ratio(value(reference) or 0.0, value(other) or 0.0, better, negligible)

    return Metric(key, name, "", unit, better, value, ratio, limit)


def _choice(report: dict[str, Any]) -> dict[str, Any]:
    return (report["quality"] or {}).get("multiple_choice") or {}


def same_text(reference: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether both qualities were measured on one held-out sample."""
    samples = [(report["quality"] or {}).get("sample_sha256") for report in (reference, other)]
    return samples[0] is not None and samples[0] == samples[1]


def _bits_ratio(reference: dict[str, Any], other: dict[str, Any]) -> Ratio:
    if not same_text(reference, other):
        return Ratio(None, note="scored on different text")
    nll = [[window["nll"] for window in r["quality"]["per_window"]] for r in (reference, other)]
    return paired_sums_ratio(nll[0], nll[1])


def _accuracy_ratio(reference: dict[str, Any], other: dict[str, Any]) -> Ratio:
    if not same_text(reference, other):
        return Ratio(None, note="asked different questions")
    ours, theirs = _choice(reference), _choice(other)
    return paired_answers_ratio(ours["accuracy"], theirs["accuracy"], ours["answers"], theirs["answers"])


_COSTS = (
    _single(
        "memory", "peak memory", "MB", "lower", "memory", "peak_rss_bytes", negligible=_TIMED, limit="memory"
    ),
    _single("rss", "memory after load", "MB", "lower", "memory", "rss_after_load_bytes", negligible=_TIMED),
    _single("size", "file size", "MB", "lower", "artefact", "bytes", limit="size"),
    Metric(
        "bits_per_byte",
        "bits per byte",
        "",
        "",
        "lower",
        lambda report: (report["quality"] or {}).get("bits_per_byte"),
        _bits_ratio,
        "bits_per_byte",
    ),
    Metric(
        "accuracy",
        "multiple choice",
        "",
        "%",
        "higher",
        lambda report: _choice(report).get("accuracy"),
        _accuracy_ratio,
        "accuracy",
    ),
    _single(
        "energy", "energy per token", "mJ", "lower", "energy", "decode_joules_per_token", negligible=_DERIVED
    ),
    _single("roofline", "share of roofline", "%", "higher", "summary", "roofline_share", negligible=_DERIVED),
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
