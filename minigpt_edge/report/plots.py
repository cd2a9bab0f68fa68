"""A report's pictures as SVG text: the same bytes for the same figures, coloured by the page's CSS.

`draw_svg` draws any picture in the same style; `standalone` makes it a file of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from io import StringIO
from typing import TYPE_CHECKING, Any, Literal

from minigpt_edge.report.build_report import BuildReport
from minigpt_edge.report.tables import signed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# What matplotlib draws with -> the page's variable, and its light and dark values for a picture alone.
_COLOURS = {
    "#010101": ("ink", "#1d2430", "#e6e9ef"),
    "#020202": ("quiet", "#6b7484", "#9aa4b5"),
    "#030303": ("line", "#d9dee6", "#39414f"),
    "#040404": ("accent", "#0b7a5b", "#3ecf9f"),
    "#050505": ("dense", "#7a4fc4", "#b497f0"),
    "#060606": ("wash", "#b9d9cf", "#24584a"),
    "#070707": ("worse", "#c2542d", "#ef8f68"),
}
INK, QUIET, _LINE, ACCENT, DENSE, _WASH, _WORSE = _COLOURS
_FRAME = (485.0, 225.0)  # width and height of the first picture's frame in typographic points, about
_LABEL = 27.0  # height of a label of two lines, likewise
_Box = tuple[float, float, float, float]  # left, right, bottom, top
_Place = tuple[float, float, Literal["left", "right", "center"]]  # offset x and y, alignment
_STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": QUIET,
    "axes.edgecolor": _LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "grid.color": _LINE,
    "grid.linewidth": 0.6,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "figure.constrained_layout.use": True,
    "legend.frameon": False,
}


def size_quality_svg(report: BuildReport) -> str | None:
    """File size against bits per byte, a point and its standard error per file; None without figures."""
    points = [
        (model.bytes / 1e6, model.quality.bits_per_byte, model.quality.stderr or 0.0, model)
        for model in report.models
        if model.bytes and model.quality.bits_per_byte is not None
    ]
    if not points:
        return None
    right = max(size for size, *_ in points) * 1.12
    low = min(bits - error for _, bits, error, _ in points)
    high = max(bits + error for _, bits, error, _ in points)
    pad = 0.18 * (high - low) or 0.05 * high
    low, high = low - pad, high + pad

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        texts = [f"{model.label}\n{size:.1f} MB · {bits:.3f}" for size, bits, _, model in points]
        scale = _FRAME[1] / (high - low)
        spots = [
            (size / right * _FRAME[0], (bits - low) * scale, error * scale) for size, bits, error, _ in points
        ]
        places = _label_places(spots, texts)
        for (size, bits, error, model), text, place in zip(points, texts, places, strict=True):
            shipped = model.role == "shipped"
            colour = ACCENT if shipped else DENSE
            mark: Any = {"fmt": "o", "markersize": 9} if shipped else {"fmt": "s", "markersize": 7}
            axes.errorbar(size, bits, yerr=error or None, color=colour, elinewidth=1.2, capsize=3, **mark)
            _note(axes, text, (size, bits), place, color=colour, va="center", linespacing=1.3)
        axes.set_xlim(0, right)
        axes.set_ylim(low, high)
        axes.set_xlabel("file size in MB")
        axes.set_ylabel("bits per byte, held-out text")
        axes.set_title("smaller and better is down and to the left", color=QUIET)

    return draw_svg(draw, (7.6, 3.9), "size-quality")


def _note(axes: Axes, text: str, point: tuple[float, float], place: _Place, **style: Any) -> None:
    """Write a text beside a point, offset in typographic points."""
    away, side = place[:2], place[2]
    axes.annotate(text, point, xytext=away, textcoords="offset points", ha=side, **style)


def _label_places(spots: Sequence[tuple[float, float, float]], texts: Sequence[str]) -> list[_Place]:
    """Where each point's label goes so that nothing covers anything else, as far as there is room.

    Args:
        spots: x, y and half the error bar of each point, in typographic points from the frame's lower left.

    Returns:
        offset x, offset y (in typographic points) and horizontal alignment of each label's middle line.
    """
    taken = [(x - 6, x + 6, y - max(6, e), y + max(6, e)) for x, y, e in spots]
    places = []
    for (x, y, error), text in zip(spots, texts, strict=True):
        width, away = 5.6 * max(map(len, text.splitlines())), error + 4 + _LABEL / 2
        offered: list[_Place] = [(10, 0, "left"), (-10, 0, "right")]
        for far in (away, away + _LABEL, away + 2 * _LABEL):
            for dy in (far, -far):
                offered += [(0, dy, "center"), (8, dy, "left"), (-8, dy, "right")]

        def box(place: tuple[float, float, str], x: float = x, y: float = y, width: float = width) -> _Box:
            left = x + place[0] - width * {"left": 0, "center": 0.5, "right": 1}[place[2]]
            return left, left + width, y + place[1] - _LABEL / 2, y + place[1] + _LABEL / 2

        free = [
            place for place in offered if _inside(box(place)) and not any(_meet(box(place), t) for t in taken)
        ]
        places.append((free or offered)[0])
        taken.append(box(places[-1]))
    return places


def _inside(box: _Box) -> bool:
    return box[0] >= 0 and box[1] <= _FRAME[0] and box[2] >= 0 and box[3] <= _FRAME[1]


def _meet(a: _Box, b: _Box) -> bool:
    return a[0] < b[1] and b[0] < a[1] and a[2] < b[3] and b[2] < a[3]


def waterfall_svg(report: BuildReport) -> str | None:
    """Bits per byte from the dense model to the shipped file, a bar per step; None without steps."""
    steps = report.waterfall.steps
    if len(steps) < 2:
        return None
    levels = [step.bits_per_byte for step in steps]
    names = [step.name for step in steps]
    spread = max(levels) - min(levels) or 0.05 * max(levels)
    low, high = min(levels) - 0.12 * spread, max(levels) + 0.18 * spread

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for at, (before, after) in enumerate(zip(levels, levels[1:], strict=False), 1):
            change = after - before
            axes.bar(at, change, bottom=before, width=0.62, color=_WORSE if change > 0 else ACCENT)
            axes.plot([at - 0.69, at + 0.31], [before, before], color=QUIET, linewidth=0.8)
            axes.plot([at + 0.31, at + 0.69], [after, after], color=QUIET, linewidth=0.8)
            _note(axes, signed(change), (at, max(before, after)), (0, 4, "center"), color=INK)
        for at, level, colour in ((0, levels[0], DENSE), (len(levels), levels[-1], ACCENT)):
            axes.plot([at - 0.31, at + 0.31], [level, level], color=colour, linewidth=4)  # no bar: no zero
            _note(axes, f"{level:.3f}", (at, level), (0, 4, "center"), color=colour)
        axes.axhline(levels[0], color=DENSE, linewidth=1.0, linestyle=(0, (5, 3)))
        axes.set_xticks(
            range(len(levels) + 1), [name.replace(" and ", "\nand ") for name in [*names, "shipped"]]
        )
        axes.set_ylim(low, high)
        axes.set_ylabel("bits per byte, validation")
        axes.grid(axis="x", visible=False)

    return draw_svg(draw, (7.6, 3.5), "waterfall")


def recovery_svg(report: BuildReport) -> str | None:
    """Validation bits per byte over recovery tokens, with the dense model as a line; None without history."""
    history = report.recovery.history
    curve = [(step.tokens, step.bits_per_byte) for step in history if step.bits_per_byte is not None]
    pruned, dense = report.quality_torch.pruned.bits_per_byte, report.quality_torch.dense.bits_per_byte
    if pruned is not None and (not curve or curve[0][0] > 0):
        curve.insert(0, (0, pruned))
    if len(curve) < 2:
        return None

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        points = [(tokens / 1000, bits) for tokens, bits in curve]
        axes.plot(*zip(*points, strict=True), color=ACCENT, marker="o", markersize=4, linewidth=1.8)
        first, start = f"after pruning {points[0][1]:.3f}", points[0][1]
        span = max(bits for _, bits in curve) - min(bits for _, bits in curve)
        on_line = dense is not None and abs(start - dense) < 0.06 * span
        _note(axes, first, points[0], (9, 12 if on_line else 0, "left"), color=ACCENT, va="center")
        _note(axes, f"{points[-1][1]:.3f}", points[-1], (0, 8, "right"), color=ACCENT)
        if dense is not None:
            axes.axhline(dense, color=DENSE, linewidth=1.4, linestyle=(0, (5, 3)))
            beside: Any = {"color": DENSE, "xycoords": ("axes fraction", "data")}
            _note(axes, f"dense model {dense:.3f}", (1, dense), (0, 5, "right"), **beside)
        axes.set_xlabel("thousand training tokens")
        axes.set_ylabel("bits per byte, validation")
        axes.margins(x=0.03, y=0.12)

    return draw_svg(draw, (7.6, 3.3), "recovery")


def widths_svg(report: BuildReport) -> str | None:
    """FFN neurons and KV groups kept in every block, over the dense model's; None without a plan's widths."""
    named = {"FFN neurons": report.sparsity.ffn_width, "KV groups": report.sparsity.kv_groups}
    rows = [
        (name, widths[0] if isinstance(widths[0], int) else max(widths[0]), widths[1])
        for name, widths in named.items()
        if widths and widths[0] and widths[1]
    ]
    if not rows:
        return None

    def draw(figure: Figure) -> None:
        heights = [2.0 if name == "FFN neurons" else 1.0 for name, *_ in rows]
        grid = figure.subplots(len(rows), 1, sharex=True, squeeze=False, height_ratios=heights)
        for axes, (name, before, after) in zip(grid[:, 0], rows, strict=True):
            _bars(axes, name, before, after)
        grid[-1, 0].set_xlabel("block")

    return draw_svg(draw, (7.6, 3.6 if len(rows) > 1 else 2.6), "widths")


def _bars(axes: Axes, name: str, before: int, after: Sequence[int]) -> None:
    blocks = range(len(after))
    axes.bar(blocks, [before] * len(after), width=0.78, color=_WASH)
    axes.bar(blocks, after, width=0.78, color=ACCENT)
    axes.set_title(f"{name}: kept of {before:,} in each block", color=QUIET)
    axes.set_xlim(-0.7, len(after) - 0.3)
    axes.set_ylim(0, before * 1.02)
    axes.grid(axis="x", visible=False)
    if before <= 16:
        axes.set_yticks(range(0, before + 1, max(1, before // 4)))


def standalone(svg: str) -> str:
    """The picture as a file of its own: carries its colours, follows the reader's light or dark scheme."""
    light, dark = (";".join(f"--{c[0]}:{c[i]}" for c in _COLOURS.values()) for i in (1, 2))
    style = f"<style>svg{{{light}}}@media(prefers-color-scheme:dark){{svg{{{dark}}}}}</style>"
    return re.sub(r"(<svg[^>]*>)", lambda tag: tag[1] + style, svg, count=1) + "\n"


def page_colours() -> dict[str, dict[str, str]]:
    """{"light": {variable: colour}, "dark": {...}} for the page that the pictures are inlined in."""
    return {scheme: {c[0]: c[i] for c in _COLOURS.values()} for i, scheme in ((1, "light"), (2, "dark"))}


def draw_svg(draw: Callable[[Figure], None], size: tuple[float, float], salt: str) -> str:
    """Draw on a new figure of `size` inches; the SVG element without prolog, dates or ids that clash."""
    import matplotlib
    from matplotlib.figure import Figure

    out = StringIO()
    style: Any = {**matplotlib.rcParamsDefault, **_STYLE, "svg.hashsalt": salt}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size)
        draw(figure)
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r' id="[a-zA-Z0-9.]+_\d+"', "", text)  # figure_1, line2d_7: nothing refers to them
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", text)
    for drawn, (name, *_) in _COLOURS.items():
        text = text.replace(drawn, f"var(--{name})")
    return text
