"""The report of a build: report.json, report.html (a page that needs nothing else) and the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt_edge.report.build_report import BuildReport
from minigpt_edge.report.tables import (
    Table,
    headline,
    megabytes,
    number,
    percent,
    tables,
    waterfall_line,
)
from minigpt_edge_runtime.files import write_json, write_text

if TYPE_CHECKING:
    from rich.console import Console

_ON_TERMINAL = ("models", "speed", "pruned", "way")


def write_report(report: BuildReport, directory: Path) -> None:
    """Write report.json and report.html into `directory`, each whole or not at all; it is made if need be.

    Raises:
        EdgeError: the directory can't be written.
    """
    write_json(directory / "report.json", report.to_json())
    write_text(directory / "report.html", render_html(report))


def render_html(report: BuildReport) -> str:
    """The report as one HTML page without external resources; the same text for the same report."""
    from jinja2 import Environment, PackageLoader

    from minigpt_edge.report.plots import (
        page_colours,
        recovery_svg,
        size_quality_svg,
        waterfall_svg,
        widths_svg,
    )

    environment = Environment(
        loader=PackageLoader("minigpt_edge.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    drawn = {
        "models": size_quality_svg(report),
        "waterfall": waterfall_svg(report),
        "way": recovery_svg(report),
        "pruned": widths_svg(report),
    }
    return environment.get_template("report.html").render(
        report=report,
        headline=headline(report),
        tiles=tiles(report),
        tables=tables(report),
        pictures={key: svg for key, svg in drawn.items() if svg},
        captions=_CAPTIONS,
        colours=page_colours(),
    )


_CAPTIONS = {
    "models": "File size against quality on held-out text; bars are one standard error.",
    "waterfall": "Bits per byte on validation text after each step from the dense model to the file.",
    "way": "Quality on validation text during recovery; the dashed line is the dense model before pruning.",
    "pruned": "What each block kept (dark) of what the dense model has (light).",
}


def tiles(report: BuildReport) -> list[tuple[str, str, str]]:
    """The few figures that matter most: (value, what it is, compared with what)."""
    shipped, dense, twin = report.compared()
    made = []
    if shipped.bytes:
        share = f"{percent(shipped.bytes / dense.bytes, 0)} of dense F16" if dense.bytes else ""
        made.append((megabytes(shipped.bytes), "file size", share))
    bits, before = shipped.quality.bits_per_byte, dense.quality.bits_per_byte
    if bits is not None:
        made.append((number(bits, 3), "bits per byte", f"{bits / before:.3f} × dense F16" if before else ""))
    rate, slower = shipped.speed.decode_tokens_per_second, twin.speed.decode_tokens_per_second
    if rate is not None:
        against = f"{rate / slower:.2f} × dense {shipped.quantization}" if slower else ""
        made.append((number(rate), "decode tokens/s", against))
    sparsity = report.sparsity
    if sparsity.achieved is not None:
        counts = (sparsity.parameters_before, sparsity.parameters_after)
        against = " → ".join(f"{count / 1e6:.1f} M" for count in counts if count)
        made.append((percent(sparsity.achieved), "parameters removed", against))
    return made


def print_table(report: BuildReport, console: Console) -> None:
    """Print the headline and the main tables to a rich console."""
    from rich.text import Text

    console.print(Text(report.name, style="bold"), Text(headline(report)), sep="\n")
    for table in tables(report):
        if table.key in _ON_TERMINAL:
            print_one(table, console)
    if line := waterfall_line(report):
        console.print()
        console.print(Text(line))


def print_one(table: Table, console: Console) -> None:
    """Print a table with its title and note."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as RichTable
    from rich.text import Text

    console.print()
    console.print(Text(table.title, style="bold"))
    style: Any = {"box": SIMPLE_HEAD, "show_edge": False, "pad_edge": False, "padding": (0, 1, 0, 0)}
    shown = RichTable(**style, header_style="dim")
    for index, column in enumerate(table.columns):
        width = max(map(len, [*column.split(), *(row[index] for row in table.rows)]))
        side: Any = "left" if index == 0 else "right"
        shown.add_column(column, justify=side, vertical="bottom", width=width)
    for index, row in enumerate(table.rows):
        shown.add_row(*map(Text, row), style="bold" if index in table.emphasis else None)
    console.print(shown)
    if table.note:
        console.print(Text(table.note, style="dim"))
