"""The pictures of a comparison, each drawn for a wide and for a narrow column."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from minigpt_edge_runtime.compare.comparison import Comparison
from minigpt_edge_runtime.compare.metrics import Row, entry, lengths, value_text
from minigpt_edge_runtime.compare.ratio import Ratio, full_text, verdict_text
from minigpt_edge_runtime.compare.svg import (
    Scale,
    dots,
    line,
    mark,
    picture,
    polyline,
    rectangle,
    scale_over,
    series_class,
    text,
    tick_text,
)

WIDTHS = {"wide": 500, "narrow": 300}
_PLOT = 230  # height of a plot with a vertical axis
_LEFT = 54

Drawing = tuple[float, list[str]]  # height, elements
Draw = Callable[[float], Drawing]


@dataclass(frozen=True)
class Chart:
    """A picture for the page: its heading, a caption, the same data in words, and SVG of both widths."""

    key: str
    title: str
    caption: str
    svg: str | None  # None: there is nothing to draw, and the caption says so


def make_charts(comparison: Comparison) -> list[Chart]:
    """All pictures, in the order of the page."""
    return [
        _ratios(comparison),
        _token_times(comparison),
        _rates(comparison, "decode", "n_depth"),
        _rates(comparison, "prefill", "n_prompt"),
        _memory(comparison),
        _size_quality(comparison),
    ]


def _chart(key: str, title: str, caption: str, words: Sequence[str], draw: Draw) -> Chart:
    drawn = []
    for name, width in WIDTHS.items():
        height, parts = draw(width)
        drawn.append(picture(f"{key}-{name}", width, height, title, "; ".join(words), parts))
    return Chart(key, title, caption, "".join(drawn))


def _x_axis(scale: Scale, top: float, bottom: float, label: str, count: int) -> list[str]:
    parts = []
    for tick in scale.ticks(count):
        x = scale(tick)
        parts += [line(x, top, x, bottom, "g"), text(x, bottom + 16, tick_text(tick), anchor="middle")]
    return [*parts, text((scale.start + scale.end) / 2, bottom + 34, label, anchor="middle")]


def _y_axis(scale: Scale, left: float, right: float, label: str) -> list[str]:
    parts = [text(0, scale.end - 12, label)]
    for tick in scale.ticks(5):
        y = scale(tick)
        parts += [line(left, y, right, y, "g"), text(left - 7, y + 4, tick_text(tick), anchor="end")]
    return parts


def _bands(
    names: Sequence[str], notes: Sequence[str], width: float, band: float
) -> list[tuple[float, list[str]]]:
    """A band per report, under its mark and name, and under or beside those a note.

    Returns:
        the top of each band (after them the bottom of the last, with nothing to draw), and its heading.
    """
    beside = all(
        24 + 7.6 * len(name) + 6.7 * len(note) < width for name, note in zip(names, notes, strict=True)
    )
    head, top, found = (20 if beside else 36), 0.0, []
    for number, (name, note) in enumerate(zip(names, notes, strict=True)):
        parts = [mark(number, 6, top + 11), text(16, top + 15, name, "t")]
        parts.append(text(width - 8, top + 15, note, anchor="end") if beside else text(16, top + 31, note))
        found.append((top + head, parts))
        top += head + band + 12
    return [*found, (top, [])]


def _ratios(comparison: Comparison) -> Chart:
    """The headline ratios, all turned so that right is better."""
    reference, *others = comparison.reports
    rows = [row for row in comparison.rows if row.metric.limit and any(ratio.value for ratio in row.ratios)]
    title = f"Better or worse than {reference.label}"
    if not rows:
        return Chart("ratios", title, "The reports have no figure in common.", None)
    gains = [gain for row in rows for ratio in row.ratios if (gain := _gain(row, ratio))]
    bounds = [bound for gain in gains for bound in gain]
    each = 15 if len(others) < 3 else 12 if len(others) < 5 else 9

    def draw(width: float) -> Drawing:
        row_height = each * len(others) + 13
        bottom = 22 + row_height * len(rows)
        low, high = min([*bounds, 1 / 1.08]), max([*bounds, 1.08])
        scale = Scale(low / 1.03, high * 1.03, 112, width - 10, log=True)
        parts = [text(scale.start, 12, "← worse"), text(scale.end, 12, "better →", anchor="end")]
        parts += _x_axis(scale, 22, bottom, "times as good", 4 if width < 400 else 6)
        for number, row in enumerate(rows):
            top = 22 + number * row_height
            parts.append(line(0, top, width, top, "g"))
            parts.append(text(0, top + row_height / 2 + 4, row.metric.name, "t"))
            for index, (report, ratio) in enumerate(zip(others, row.ratios, strict=True)):
                if gain := _gain(row, ratio):
                    y = top + 6.5 + each * (index + 0.5)
                    words = f"{report.label}: {row.metric.label} {full_text(ratio)} {verdict_text(ratio)}"
                    parts.append(line(scale(gain[0]), y, scale(gain[2]), y, f"w {series_class(index + 1)}"))
                    parts.append(mark(index + 1, scale(gain[1]), y, words))
        return bottom + 40, [*parts, line(scale(1), 22, scale(1), bottom, "one")]

    words = [
        f"{report.label} {row.metric.label}: {full_text(ratio)} {verdict_text(ratio)}"
        for row in rows
        for report, ratio in zip(others, row.ratios, strict=True)
    ]
    caption = f"Right of 1 is better than {reference.label}, whichever way that is; lines are 95 % intervals."
    return _chart("ratios", title, caption, words, draw)


def _gain(row: Row, ratio: Ratio) -> tuple[float, float, float] | None:
    """A ratio between its bounds, turned so that more is better."""
    if not ratio.value:
        return None
    low, high = max(ratio.low or ratio.value, ratio.value / 10), ratio.high or ratio.value
    if row.metric.better == "lower":
        return 1 / high, 1 / ratio.value, 1 / low
    return low, ratio.value, high


def _token_times(comparison: Comparison) -> Chart:
    """Every raw time between tokens, a band per report."""
    data = [report.data for report in comparison.reports]
    common = lengths(data, "decode", "n_depth").common
    if not common:
        return Chart("itl", "Time between tokens", "The reports have no depth in common.", None)
    runs = [(entry(report, "decode", "n_depth", common[0]) or {})["itl_ns"] for report in data]
    times = [[nanoseconds / 1e6 for run in report for nanoseconds in run] for report in runs]
    found = [entry(report, "decode", "n_depth", common[0]) or {} for report in data]
    named = [
        f"median {value_text(e['itl_ms']['p50'], 'ms')}, p99 {value_text(e['itl_ms']['p99'], 'ms')}"
        for e in found
    ]
    band = 56

    def draw(width: float) -> Drawing:
        scale = scale_over([t for report in times for t in report], 6, width - 8, pad=0.03)
        *bands, (bottom, _) = _bands([report.label for report in comparison.reports], named, width, band)
        label, count = _axis_name("milliseconds per token", scale), 5 if width < 400 else 8
        parts = _x_axis(scale, bottom - 4, bottom, label, count)
        for number, (top, heading) in enumerate(bands):
            parts += [*heading, rectangle(scale.start, top, scale.end - scale.start, band, "band")]
            parts += [line(scale(tick), top, scale(tick), top + band, "g") for tick in scale.ticks(count)]
            # a golden-ratio sequence spreads dots evenly and the same way every time
            spots = [
                (scale(t), top + 5 + (n * 0.618034) % 1 * (band - 10)) for n, t in enumerate(times[number])
            ]
            parts.append(dots(spots, f"d {series_class(number)}"))
            for percentile, kind in (("p50", "median"), ("p99", "tail")):
                x = scale(found[number]["itl_ms"][percentile])
                parts.append(line(x, top, x, top + band, kind))
        return bottom + 40, parts

    caption = (
        f"Each dot is one token at depth {common[0]:,}; the solid line is the median, the dashed one p99."
    )
    words = [
        f"{r.label}: {n}, {len(t)} tokens" for r, n, t in zip(comparison.reports, named, times, strict=True)
    ]
    return _chart("itl", "Time between tokens", caption, words, draw)


def _axis_name(name: str, scale: Scale) -> str:
    return f"{name} (logarithmic)" if scale.log else name


def _rates(comparison: Comparison, part: str, field: str) -> Chart:
    """tokens/s of every repetition against depth or prompt length, medians joined."""
    curves = [
        [
            (measured[field], measured["samples_ts"])
            for measured in sorted(report.data[part], key=lambda m: m[field])
        ]
        for report in comparison.reports
    ]
    all_lengths = sorted({length for curve in curves for length, _ in curve})
    rates = [rate for curve in curves for _, samples in curve for rate in samples]
    what = {"decode": "tokens already in the context", "prefill": "tokens of the prompt"}[part]
    title = {"decode": "Decode speed against depth", "prefill": "Prefill speed against prompt length"}[part]
    if not rates:
        return Chart(part, title, "Not measured.", None)

    def draw(width: float) -> Drawing:
        x_scale = scale_over(all_lengths, _LEFT + 12, width - 16, pad=0)
        y_scale = scale_over(rates, _PLOT, 26, pad=0.08, zero=True)
        parts = _y_axis(y_scale, _LEFT, width - 4, _axis_name("tokens/s", y_scale))
        parts += _length_axis(x_scale, all_lengths, what)
        for number, (report, curve) in enumerate(zip(comparison.reports, curves, strict=True)):
            middle = [(n, statistics.median(samples)) for n, samples in curve]
            spots = [(x_scale(n), y_scale(rate)) for n, samples in curve for rate in samples]
            parts.append(
                polyline([(x_scale(n), y_scale(rate)) for n, rate in middle], f"l {series_class(number)}")
            )
            parts.append(dots(spots, f"d {series_class(number)}"))
            parts += [
                mark(
                    number,
                    x_scale(n),
                    y_scale(rate),
                    f"{report.label}: {value_text(rate, 'tok/s')} at {n:,}",
                )
                for n, rate in middle
            ]
        return _PLOT + 42, parts

    words = [
        f"{report.label}: "
        + ", ".join(f"{value_text(statistics.median(s), 'tok/s')} at {n:,}" for n, s in curve)
        for report, curve in zip(comparison.reports, curves, strict=True)
    ]
    return _chart(part, title, "Marks are medians, dots the repetitions. Higher is better.", words, draw)


def _length_axis(scale: Scale, values: Sequence[int], label: str) -> list[str]:
    """Ticks where something was measured, as far as their numbers do not touch."""
    parts = [text((scale.start + scale.end) / 2, _PLOT + 36, _axis_name(label, scale), anchor="middle")]
    free = float("-inf")
    for value in values:
        x, half = scale(value), 4 * len(f"{value:,}")
        if x - half >= free:
            parts.append(text(x, _PLOT + 18, f"{value:,}", anchor="middle"))
            parts.append(line(x, _PLOT, x, _PLOT + 4, "g"))
            free = x + half
    return parts


_MEMORY = (
    ("rss_before_load_bytes", "before load"),
    ("rss_after_load_bytes", "after load"),
    ("peak_rss_bytes", "peak"),
)


def _memory(comparison: Comparison) -> Chart:
    """Resident memory as a bar that grows from before the load to the peak."""
    memories = [report.data["memory"] for report in comparison.reports]
    most = max((memory[key] or 0 for memory in memories for key, _ in _MEMORY), default=0)
    title = "Memory of the process"
    if most == 0:
        return Chart("memory", title, "No report knows its memory.", None)
    words = [
        f"{report.label}: " + ", ".join(f"{name} {value_text(memory[key], 'MB')}" for key, name in _MEMORY)
        for report, memory in zip(comparison.reports, memories, strict=True)
    ]

    known = [[f"{m[key] / 1e6:,.0f}" for key, _ in _MEMORY if m[key] is not None] for m in memories]
    notes = [f"{' → '.join(sizes)} MB" if sizes else "unknown" for sizes in known]

    band = 28 if len(memories) < 4 else 16

    def draw(width: float) -> Drawing:
        scale = Scale(0, most / 1e6 * 1.02, 6, width - 8)
        *bands, (bottom, _) = _bands([report.label for report in comparison.reports], notes, width, band)
        count = 4 if width < 400 else 6
        parts = _x_axis(scale, bottom - 4, bottom, "MB, resident", count)
        for number, (top, heading) in enumerate(bands):
            parts += [*heading, rectangle(scale.start, top, scale.end - scale.start, band, "band")]
            parts += [line(scale(tick), top, scale(tick), top + band, "g") for tick in scale.ticks(count)]
            parts += _bar(memories[number], number, scale, top, band)
        return bottom + 40, parts

    caption = "Light to dark: before the load, what the load added, what running added up to the peak."
    return _chart("memory", title, caption, words, draw)


def _bar(memory: dict[str, Any], number: int, scale: Scale, top: float, band: float) -> list[str]:
    parts, reached = [], 0.0
    for level, (key, name) in enumerate(_MEMORY):
        if (size := memory[key]) is not None and size / 1e6 > reached:
            left, right = scale(reached), scale(size / 1e6)
            kind = f"b b{level} {series_class(number)}"
            parts.append(
                rectangle(left, top, right - left - 1, band, kind, f"{name}: {value_text(size, 'MB')}")
            )
            reached = size / 1e6
    return parts


def _size_quality(comparison: Comparison) -> Chart:
    """File size against bits per byte with one standard error."""
    title = "Size and quality"
    points = [
        (number, report.data["artefact"]["bytes"] / 1e6, quality["bits_per_byte"], quality["stderr"] or 0.0)
        for number, report in enumerate(comparison.reports)
        if (quality := report.data["quality"]) is not None
    ]
    if not points:
        return Chart(
            "quality",
            title,
            "No report has a quality score (a bundle with a held-out sample gives one).",
            None,
        )
    missing = [r.label for r in comparison.reports if r.data["quality"] is None]

    def draw(width: float) -> Drawing:
        x_scale = scale_over([size for _, size, _, _ in points], _LEFT + 24, width - 28, pad=0.12)
        y_scale = scale_over([b + e * side for _, _, b, e in points for side in (-1, 1)], _PLOT, 26, pad=0.12)
        parts = _y_axis(y_scale, _LEFT, width - 4, "bits per byte")
        parts += _x_axis(
            x_scale, _PLOT, _PLOT + 4, _axis_name("file size in MB", x_scale), 4 if width < 400 else 6
        )
        taken: list[tuple[float, float]] = []
        for number, size, bits, error in points:
            x, y = x_scale(size), y_scale(bits)
            while any(abs(x - other) < 9 and abs(y - level) < 9 for other, level in taken):
                x += 10  # the same file measured twice stays visible
            taken.append((x, y))
            label = comparison.reports[number].label
            words = f"{label}: {size:,.1f} MB, {bits:.4f} bits per byte"
            parts.append(
                line(x, y_scale(bits - error), x, y_scale(bits + error), f"w {series_class(number)}")
            )
            parts.append(mark(number, x, y, words, 5.5))
        return _PLOT + 42, parts

    caption = "Down and to the left is better. Lines are one standard error; equal points stand side by side."
    if missing:
        caption += f" Not scored: {', '.join(missing)}."
    words = [
        f"{comparison.reports[n].label}: {size:,.1f} MB, {bits:.4f} bits per byte ± {error:.4f}"
        for n, size, bits, error in points
    ]
    return _chart("quality", title, caption, words, draw)
