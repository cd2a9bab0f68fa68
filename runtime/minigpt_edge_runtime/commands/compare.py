"""compare: latency reports side by side."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from minigpt_edge_runtime.compare.limits import METRICS, broken, parse_limit
from minigpt_edge_runtime.errors import EdgeError, UsageError

if TYPE_CHECKING:
    from minigpt_edge_runtime.compare.comparison import Comparison

_EPILOG = "Metrics of --fail-if, each as its ratio to the reference: " + "; ".join(
    f"{name} ({meaning})" for name, meaning in METRICS.items()
)


def make_command(render_page: Callable[[Comparison], str] | None) -> click.Command:
    """The command, with the function that makes its page; None on a device, which can't draw one."""

    @click.command("compare", epilog=_EPILOG)
    @click.argument("reports", nargs=-1, type=click.Path(path_type=Path))
    @click.option(
        "--html",
        type=click.Path(path_type=Path),
        help="Also write a self-contained page with plots (on the workstation, by minigpt-edge compare).",
    )
    @click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON.")
    @click.option(
        "--fail-if",
        "expressions",
        metavar="EXPR",
        multiple=True,
        help="Exit 1 if a report's ratio to the reference is so, like 'decode<0.95' or 'memory>1.1' "
        "(may be given again). A figure that is missing fails too.",
    )
    def compare(
        reports: tuple[Path, ...], html: Path | None, as_json: bool, expressions: tuple[str, ...]
    ) -> None:
        """Compare latency REPORTS (files of bench) with the first of them: ratios, spread, what differs."""
        from minigpt_edge_runtime.compare.comparison import compare_files

        limits = [parse_limit(expression) for expression in expressions]
        if html is not None and render_page is None:
            names = " ".join(map(str, reports)) or "REPORTS"
            hint = (
                f"copy the reports to the workstation, and there: minigpt-edge compare {names} --html {html}"
            )
            raise UsageError("the page with plots can't be drawn on a device", hint)
        if html is not None and html.resolve() in [report.resolve() for report in reports]:
            raise UsageError(f"--html {html} would replace a report", "choose another name for the page")
        comparison = compare_files(reports)
        failures = broken(comparison, limits)
        if html is not None and render_page is not None:
            from minigpt_edge_runtime.files import write_text

            write_text(html, render_page(comparison))
            click.echo(f"wrote {html}", err=True)
        _show(comparison, failures, as_json)
        if failures:
            raise EdgeError(
                "\n       ".join(failures),
                "measure again on a quiet machine, with the same lengths, depths and held-out sample",
            )

    return compare


def _show(comparison: Comparison, failures: list[str], as_json: bool) -> None:
    if as_json:
        content = {**comparison.to_json(), "failures": failures}
        click.echo(json.dumps(content, indent=2, ensure_ascii=False))
        return
    from rich.console import Console

    from minigpt_edge_runtime.compare.table import show_table

    console = Console()
    show_table(comparison, console if console.is_terminal else Console(width=120))


compare = make_command(None)
