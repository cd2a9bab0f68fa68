"""The comparison in a terminal: what to know first, then the figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from minigpt_edge_runtime.compare.comparison import Comparison
from minigpt_edge_runtime.compare.metrics import Row, value_text
from minigpt_edge_runtime.compare.ratio import RULES, Ratio, full_text, verdict_text

if TYPE_CHECKING:
    from rich.console import Console

_STYLES = {"better": "green", "worse": "red", "noise": "dim", "same": "dim", "unknown": "yellow"}
_LABEL, _VALUE, _RATIO = 24, 12, 29  # widths of columns in characters, about


def show_table(comparison: Comparison, console: Console) -> None:
    """Print warnings, the table (reports as columns, or as rows when there are many), and its rules."""
    for caveat in comparison.caveats:
        console.print(Text.assemble(("! ", "yellow"), (caveat.about, "bold"), f": {caveat.values}"))
        console.print(Text(f"  {caveat.meaning}", "dim"))
    if comparison.caveats:
        console.print()
    others = len(comparison.reports) - 1
    if others == 1 or _LABEL + _VALUE + others * (_VALUE + _RATIO) <= console.width:
        console.print(_reports_as_columns(comparison))
        console.print()
    else:
        at_once = max(1, (console.width - _LABEL) // _RATIO)
        for first in range(0, len(comparison.rows), at_once):
            console.print(_reports_as_rows(comparison, comparison.rows[first : first + at_once]))
            console.print()
    for rule in RULES:
        console.print(Text(rule, "dim"))


def _reports_as_columns(comparison: Comparison) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("")
    for number, report in enumerate(comparison.reports):
        role = "" if number else "\nreference"
        table.add_column(Text(f"{report.label}{role}"), justify="right")
        if number:
            table.add_column(Text(f"× {comparison.reports[0].label}"))
    for row in comparison.rows:
        cells = [Text(row.metric.label), Text(value_text(row.values[0], row.metric.unit))]
        for value, ratio in zip(row.values[1:], row.ratios, strict=True):
            cells += [Text(value_text(value, row.metric.unit)), _judged(ratio)]
        table.add_row(*cells)
    return table


def _reports_as_rows(comparison: Comparison, rows: list[Row]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for row in rows:
        table.add_column(Text(row.metric.label))
    for number, report in enumerate(comparison.reports):
        cells = [Text(report.label)]
        for row in rows:
            value = Text(value_text(row.values[number], row.metric.unit))
            judged = Text("reference", "dim") if number == 0 else _judged(row.ratios[number - 1])
            cells.append(Text("\n").join([value, judged]))
        table.add_row(*cells)
    return table


def _judged(ratio: Ratio) -> Text:
    return Text.assemble(full_text(ratio), " ", (verdict_text(ratio), _STYLES[ratio.verdict]))
