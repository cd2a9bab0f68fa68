"""The pictures of docs/evidence.md and the README."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from minigpt_edge.report.plots import ACCENT, DENSE, INK, QUIET, draw_svg, standalone

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OURS = ("ours", "ours, 20%", "ours, 60%")  # at 42 % and at other shares removed
_MARKS = "os^vDPX*<>"
_HIGHEST = 30.0  # of the picture's axis, times the dense model's perplexity


def one_shot_picture(result: dict[str, Any]) -> str:
    """Perplexity ÷ dense over the share removed, a line per method that makes models smaller."""
    dense = result["dense"]["perplexity_per_base_token"]
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in result["rows"]:
        name, _, kind = row["method"].partition(", ")
        if "test" in row and kind in ("", "published"):
            ratio = row["test"]["perplexity_per_base_token"] / dense
            lines.setdefault(name, []).append((100 * row["sparsity"], ratio))

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for mark, (name, points) in zip(_MARKS, lines.items(), strict=False):
            ours = name == "least_squares"
            style: Any = {"color": ACCENT, "linewidth": 2.2, "zorder": 3} if ours else {"color": DENSE}
            label = f"{name} (ours)" if ours else name
            axes.plot(*zip(*points, strict=True), marker=mark, markersize=5, label=label, **style)
        axes.set_yscale("log")
        axes.set_ylim(0.9, _HIGHEST)
        axes.set_yticks([1, 2, 3, 5, 10, 20], ["1", "2", "3", "5", "10", "20"])
        axes.minorticks_off()
        axes.set_xlabel("% of the parameters removed")
        axes.set_ylabel("perplexity ÷ dense")
        axes.set_title("before any fine-tuning; lower is better", color=QUIET)
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))

    return standalone(draw_svg(draw, (7.6, 3.9), "one-shot"))


def front_picture(rows: list[dict[str, Any]]) -> str:
    """File size against bits per byte, a line per model."""
    styles = {name: (ACCENT, 2.2) for name in OURS}
    styles |= {"dense": (DENSE, 1.4), "dense, fine-tuned": (DENSE, 2.2)}

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for mark, model in zip(_MARKS, dict.fromkeys(row["model"] for row in rows), strict=False):
            points = sorted(
                (row["bytes"] / 1e6, row["bits_per_byte"]) for row in rows if row["model"] == model
            )
            colour, width = styles.get(model, (QUIET if model != "blocks" else INK, 1.0))
            names = {"blocks": "whole blocks removed, fine-tuned", "ours": "ours, 42%"}
            label = names.get(model, model)
            axes.plot(
                *zip(*points, strict=True),
                marker=mark,
                markersize=5,
                label=label,
                color=colour,
                linewidth=width,
            )
        axes.set_xscale("log")
        axes.set_xticks([30, 40, 60, 80, 120, 160, 270], ["30", "40", "60", "80", "120", "160", "270"])
        axes.minorticks_off()
        best = min(row["bits_per_byte"] for row in rows)
        axes.set_ylim(best - 0.03, best + 0.5)
        axes.set_xlabel("file size in MB")
        axes.set_ylabel("bits per byte, held-out text")
        axes.set_title("smaller and better is down and to the left", color=QUIET)
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))

    return standalone(draw_svg(draw, (8.6, 3.9), "front"))


def time_picture(lines: Mapping[str, Mapping[str, list[tuple[float, float]]]]) -> str:
    """Bits per byte over minutes of work, a panel per domain: domain -> model -> (minutes, bits per byte)."""

    def draw(figure: Figure) -> None:
        for number, (domain, models) in enumerate(lines.items(), 1):
            axes = figure.add_subplot(1, len(lines), number)
            for (model, points), (mark, colour) in zip(
                models.items(), (("o", ACCENT), ("s", DENSE)), strict=False
            ):
                axes.plot(*zip(*points, strict=True), marker=mark, markersize=5, color=colour, label=model)
            ticks = sorted({round(minutes) for points in models.values() for minutes, _ in points})
            axes.set_xscale("log")
            axes.set_xticks(ticks, [str(tick) for tick in ticks])
            axes.minorticks_off()
            axes.set_xlabel("minutes, pruning counted")
            axes.set_title(domain, color=QUIET)
            axes.legend()
            if number == 1:
                axes.set_ylabel("bits per byte, held-out text")

    return standalone(draw_svg(draw, (8.6, 3.6), "time"))
