"""The pictures of a comparison of latency reports, as SVG that the page colours."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from minigpt_edge.report.plots import INK, QUIET, draw_svg
from minigpt_edge_runtime.compare.comparison import Comparison
from minigpt_edge_runtime.compare.metrics import Row, entry, lengths, value_text
from minigpt_edge_runtime.compare.ratio import Ratio, full_text, verdict_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# A report's colours on the light and the dark page; matplotlib draws with one that stands for both.
SERIES = (
    ("#2b3442", "#dfe4ec"),
    ("#0072b2", "#56b4e9"),
    ("#c24a06", "#ff9a57"),
    ("#0b7a5b", "#3ecf9f"),
    ("#a83f86", "#e79bd0"),
    ("#7d5e00", "#e2c23f"),
    ("#3475a8", "#8fb8ff"),
    ("#8c3b2a", "#e58a78"),
)
_DRAWN = [f"#0{n}0b0{n}" for n in range(len(SERIES))]
_CARD = "#0c0c0c"  # the page behind a picture
_MARKERS, _SIGNS = "os^DvP*X", "●■▲◆▼✚★✖"
_WIDTH = 5.2  # inches of every picture


@dataclass(frozen=True)
class Chart:
    """A picture: its heading, a caption, what it shows in words, and None where there is nothing to draw."""

    title: str
    caption: str
    words: str = ""
    svg: str | None = None
    names_reports: bool = False


def sign(number: int) -> str:
    """The mark of report `number` as a character."""
    return _SIGNS[_shape(number)]


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


def _shape(number: int) -> int:
    return (number + number // len(SERIES)) % len(SERIES)


def _colour(number: int) -> str:
    return _DRAWN[number % len(SERIES)]


def _mark(number: int) -> dict[str, Any]:
    """How report `number` is marked: its own shape and colour, outlined so that overlaps show."""
    size = 8 if _MARKERS[_shape(number)] in "*PX" else 6.5
    style = {"marker": _MARKERS[_shape(number)], "markersize": size, "linestyle": "none", "clip_on": False}
    return {**style, "color": _colour(number), "markeredgecolor": _CARD, "markeredgewidth": 0.7, "zorder": 4}


def _svg(draw: Callable[[Axes], None], height: float, salt: str) -> str:
    import matplotlib

    def on(figure: Figure) -> None:
        matplotlib.rcParams["path.simplify"] = False  # it drops dots; in force until the picture is drawn
        draw(figure.add_subplot())

    svg = draw_svg(on, (_WIDTH, height), salt)
    for number, drawn in enumerate(_DRAWN):
        svg = svg.replace(drawn, f"var(--s{number})")
    return svg.replace(_CARD, "var(--card)")


def _scaled(axes: Axes, which: str, values: Sequence[float], label: str, *, zero: bool = False) -> None:
    """Give axis "x" or "y" a label and room for `values`; logarithmic where they differ over tenfold."""
    low, high = min(values), max(values)
    if low > 0 and high > 10 * low:
        room = (high / low) ** 0.06
        _log_axis(axes, which, low / room, high * room)
        label += " (logarithmic)"
    else:
        room = 0.1 * (high - low) or 0.05 * abs(high) or 1.0
        axes.set(**{f"{which}lim": (0.0, high * 1.08 or 1.0) if zero else (low - room, high + room)})
        getattr(axes, f"{which}axis").set_major_formatter(_tick_text)
    axes.set(**{f"{which}label": label})


def _log_axis(axes: Axes, which: str, low: float, high: float) -> None:
    from matplotlib.ticker import MaxNLocator, NullLocator

    ticks = [tick for tick in MaxNLocator(5).tick_values(low, high) if low <= tick <= high]
    if high > 4 * low:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for steps in ((1, 1.5, 2, 3, 4, 6, 8), (1, 2, 5), (1, 3), (1,)):
            ticks = [s * 10.0**p for p in powers for s in steps if low <= s * 10.0**p <= high]
            if len(ticks) <= 7:
                break
    axes.set(**{f"{which}scale": "log", f"{which}lim": (low, high), f"{which}ticks": ticks})
    axis = getattr(axes, f"{which}axis")
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(_tick_text)


def _tick_text(value: float, position: int | None = None) -> str:
    return f"{value:.2g}" if value and abs(value) < 0.01 else f"{round(value, 6):,.10g}"


def _bands(axes: Axes, names: Sequence[str], notes: Sequence[str]) -> None:
    """A band of height 0.4 around each report's number, from the top; above it its mark, name and note."""
    across = axes.get_yaxis_transform()
    for number, (name, note) in enumerate(zip(names, notes, strict=True)):
        beside = len(name) + len(note) < 56
        top = number - (0.34 if beside else 0.5)
        axes.plot([0.012], [top], transform=across, **_mark(number))
        style: Any = {"transform": across, "va": "center", "parse_math": False}
        axes.text(0.035, top, name, weight="bold", **style)
        if beside:
            axes.text(1, top, note, color=QUIET, ha="right", **style)
        else:
            axes.text(0, number - 0.3, note, color=QUIET, **style)
    axes.set(ylim=(len(names) - 0.72, -0.62), yticks=[])
    axes.spines["left"].set_visible(False)


def _ratios(comparison: Comparison) -> Chart:
    """The headline ratios, all turned so that right is better."""
    reference, *others = comparison.reports
    rows = [row for row in comparison.rows if row.metric.limit and any(ratio.value for ratio in row.ratios)]
    title = f"Better or worse than {reference.label}"
    if not rows:
        return Chart(title, "The reports have no figure in common.")
    gains = [
        (at, n, gain)
        for at, row in enumerate(rows)
        for n, r in enumerate(row.ratios)
        if (gain := _gain(row, r))
    ]

    def draw(axes: Axes) -> None:
        bounds = [bound for _, _, gain in gains for bound in gain]
        _log_axis(axes, "x", min([*bounds, 1 / 1.08]) / 1.04, max([*bounds, 1.08]) * 1.04)
        for at, n, (low, value, high) in gains:
            y = at + (n - (len(others) - 1) / 2) * 0.8 / len(others)
            axes.plot([low, high], [y, y], color=_colour(n + 1), linewidth=1.8, solid_capstyle="round")
            axes.plot([value], [y], **_mark(n + 1))
        axes.axvline(1, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        axes.set(
            ylim=(len(rows) - 0.5, -0.5), yticks=range(len(rows)), yticklabels=[r.metric.name for r in rows]
        )
        axes.tick_params("y", labelcolor=INK)
        axes.set_title("← worse", color=QUIET)
        axes.set_title("better →", color=QUIET, loc="right")
        axes.set_xlabel("times as good")

    words = [
        f"{report.label} {row.metric.label}: {full_text(ratio)} {verdict_text(ratio)}"
        for row in rows
        for report, ratio in zip(others, row.ratios, strict=True)
    ]
    caption = f"Right of 1 is better than {reference.label}, whichever way that is; lines are 95 % intervals."
    height = 0.95 + len(rows) * max(0.26, 0.075 * len(others) + 0.06)
    return Chart(title, caption, "; ".join(words), _svg(draw, height, "ratios"))


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
    data, title = [report.data for report in comparison.reports], "Time between tokens"
    common = lengths(data, "decode", "n_depth").common
    if not common:
        return Chart(title, "The reports have no depth in common.")
    found = [entry(report, "decode", common[0]) or {} for report in data]
    times = [[time / 1e6 for run in measured["itl_ns"] for time in run] for measured in found]
    names = [report.label for report in comparison.reports]
    notes = [
        ", ".join(f"{name} {value_text(measured['itl_ms'][key], 'ms')}" for name, key in _PERCENTILES)
        for measured in found
    ]

    def draw(axes: Axes) -> None:
        _bands(axes, names, notes)
        _scaled(axes, "x", [time for report in times for time in report], "milliseconds per token")
        for number, (values, measured) in enumerate(zip(times, found, strict=True)):
            # A golden-ratio sequence spreads the dots evenly, and the same way every time.
            heights = [number - 0.15 + 0.3 * (n * 0.618034 % 1) for n in range(len(values))]
            axes.plot(*_dots(values, heights, 10), **_DOTS, color=_colour(number))
            for (_, key), dashes in zip(_PERCENTILES, ("-", (0, (3, 2))), strict=True):
                at = measured["itl_ms"][key]
                axes.plot([at, at], [number - 0.2, number + 0.2], color=INK, linewidth=1.4, linestyle=dashes)

    caption = f"A dot is one token at depth {common[0]:,}; the solid line is the median, the dashed one p99."
    words = "; ".join(f"{name}: {note}" for name, note in zip(names, notes, strict=True))
    svg = _svg(draw, 0.6 + 0.75 * len(names), "itl")
    return Chart(title, caption, words, svg, names_reports=True)


_PERCENTILES = (("median", "p50"), ("p99", "p99"))
_DOTS: Any = {"linewidth": 2.4, "solid_capstyle": "round", "alpha": 0.45}


def _dots(x: Sequence[float], y: Sequence[float], span: float) -> tuple[list[float], list[float]]:
    """Points as one line of very short strokes, which takes far less room in a file than markers."""
    gap = math.nan
    return [v for at in x for v in (at, at, gap)], [v for at in y for v in (at, at + 0.002 * span, gap)]


def _rates(comparison: Comparison, part: str, field: str) -> Chart:
    """Tokens/s of every repetition against depth or prompt length, medians joined."""
    title, label = {
        "decode": ("Decode speed against depth", "tokens already in the context"),
        "prefill": ("Prefill speed against prompt length", "tokens of the prompt"),
    }[part]
    curves = [
        [
            (measured[field], measured["samples_ts"])
            for measured in sorted(r.data[part], key=lambda m: m[field])
        ]
        for r in comparison.reports
    ]

    def draw(axes: Axes) -> None:
        _scaled(axes, "x", [length for curve in curves for length, _ in curve], label)
        _scaled(
            axes, "y", [v for curve in curves for _, rates in curve for v in rates], "tokens/s", zero=True
        )
        _length_ticks(axes, sorted({length for curve in curves for length, _ in curve}))
        for number, curve in enumerate(curves):
            x, y = [n for n, rates in curve for _ in rates], [rate for _, rates in curve for rate in rates]
            axes.plot(*_dots(x, y, max(y)), **_DOTS, color=_colour(number))
            middle = [n for n, _ in curve], [statistics.median(rates) for _, rates in curve]
            axes.plot(*middle, color=_colour(number), linewidth=1.6)
            axes.plot(*middle, **_mark(number))

    words = [
        f"{report.label}: "
        + ", ".join(f"{value_text(statistics.median(s), 'tok/s')} at {n:,}" for n, s in curve)
        for report, curve in zip(comparison.reports, curves, strict=True)
    ]
    caption = "Marks are medians, dots the repetitions. Higher is better."
    return Chart(title, caption, "; ".join(words), _svg(draw, 3.3, part))


def _length_ticks(axes: Axes, values: Sequence[int]) -> None:
    """Ticks where something was measured, as far as their numbers do not touch."""
    ticks: list[int] = []
    free = -1.0
    for value in values:
        at = float(axes.transAxes.inverted().transform(axes.transData.transform((value, 0)))[0])
        half = 0.011 * len(f"{value:,}")
        if at - half > free:
            ticks.append(value)
            free = at + half
    axes.set_xticks(ticks)


_MEMORY = (
    ("rss_before_load_bytes", "before load"),
    ("rss_after_load_bytes", "after load"),
    ("peak_rss_bytes", "peak"),
)


def _memory(comparison: Comparison) -> Chart:
    """Resident memory as a bar that grows from before the load to the peak."""
    title, names = "Memory of the process", [report.label for report in comparison.reports]
    sizes = [[report.data["memory"][key] for key, _ in _MEMORY] for report in comparison.reports]
    known = [[size / 1e6 for size in one if size is not None] for one in sizes]
    if not any(map(sum, known)):
        return Chart(title, "No report knows its memory.")
    notes = [f"{' → '.join(f'{s:,.0f}' for s in one)} MB" if one else "unknown" for one in known]

    def draw(axes: Axes) -> None:
        _bands(axes, names, notes)
        _scaled(axes, "x", [0, *(size for one in known for size in one)], "MB, resident", zero=True)
        for number, one in enumerate(sizes):
            reached = 0.0
            for size, alpha in zip(one, (0.35, 0.65, 1), strict=True):
                if size is not None and size / 1e6 > reached:
                    bar: Any = {"height": 0.34, "left": reached, "color": _colour(number), "alpha": alpha}
                    axes.barh(number, size / 1e6 - reached, **bar)
                    reached = size / 1e6

    words = [
        f"{name}: "
        + ", ".join(f"{what} {value_text(size, 'MB')}" for (_, what), size in zip(_MEMORY, one, strict=True))
        for name, one in zip(names, sizes, strict=True)
    ]
    caption = "Light to dark: before the load, what the load added, what running added up to the peak."
    svg = _svg(draw, 0.6 + 0.62 * len(names), "memory")
    return Chart(title, caption, "; ".join(words), svg, names_reports=True)


def _size_quality(comparison: Comparison) -> Chart:
    """File size against bits per byte with one standard error."""
    title = "Size and quality"
    points = [
        (number, report.data["artefact"]["bytes"] / 1e6, quality["bits_per_byte"], quality["stderr"] or 0.0)
        for number, report in enumerate(comparison.reports)
        if (quality := report.data["quality"]) is not None
    ]
    if not points:
        return Chart(title, "No report has a quality score (a bundle with a held-out sample gives one).")
    missing = [report.label for report in comparison.reports if report.data["quality"] is None]

    def draw(axes: Axes) -> None:
        sizes = [size for _, size, _, _ in points]
        _scaled(axes, "x", sizes, "file size in MB")
        _scaled(axes, "y", [b + e * side for _, _, b, e in points for side in (-1, 1)], "bits per byte")
        taken: list[tuple[float, float]] = []
        for number, size, bits, error in points:
            x, y = axes.transLimits.transform(axes.transScale.transform((size, bits)))  # shares of the frame
            while any(abs(x - other) < 0.03 and abs(y - level) < 0.05 for other, level in taken):
                x += 0.035
            taken.append((x, y))
            place: Any = {"transform": axes.get_yaxis_transform(), "color": _colour(number)}
            axes.plot([x, x], [bits - error, bits + error], linewidth=1.8, **place)
            axes.plot([x], [bits], **{**_mark(number), **place})

    caption = "Down and to the left is better. Lines are one standard error; equal points stand side by side."
    if missing:
        caption += f" Not scored: {', '.join(missing)}."
    words = [
        f"{comparison.reports[n].label}: {size:,.1f} MB, {bits:.4f} bits per byte ± {error:.4f}"
        for n, size, bits, error in points
    ]
    return Chart(title, caption, "; ".join(words), _svg(draw, 3.3, "quality"))
