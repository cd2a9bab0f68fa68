"""sweep: many builds from one file."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from minigpt_edge.commands.build import build


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--jobs", type=click.IntRange(1), help="Builds at a time, in place of what FILE says.")
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON on stdout.")
def sweep(file: Path, jobs: int | None, as_json: bool) -> None:
    """Build every combination of the values in FILE, a TOML file like this:

    \b
    out = "models"            # where the bundles go      [default: FILE's name]
    threads = 1               # of each build             [default: 1]
    jobs = 2                  # builds at a time          [default: cores / threads]
    [options]                 # of every build, as on its command line
    model = "smollm2-135m-instruct"
    recover-tokens = 100000
    [vary]                    # each combination is a build
    domain = ["law", "games"]
    sparsity = [0.2, 0.42]
    target = [["gguf-q4", "onnx-int4"]]

    Builds share the stages that are equal. Stopped, the same command continues; a build that fails does not
    stop the others, and the exit status is then 1. Each build's log is OUT/NAME.log, the figures of all
    of them in OUT/sweep.json.
    """
    from dataclasses import replace

    from rich.console import Console
    from rich.markup import escape

    from minigpt_edge.stages import sweep as sweeps
    from minigpt_edge.stages.parallel import all_cores

    options = {
        name.removeprefix("--"): bool(option.is_flag)
        for option in build.params
        if isinstance(option, click.Option)
        for name in (*option.opts, *option.secondary_opts)
        if name.startswith("--")
    }
    asked = sweeps.read_sweep(file, options, all_cores())
    asked = replace(asked, jobs=jobs or asked.jobs)
    console = Console(stderr=True, highlight=False)
    count = len(asked.builds)
    console.print(
        f"{count} builds, {min(asked.jobs, count)} at a time, into {escape(str(asked.out))}", soft_wrap=True
    )

    def on_end(name: str, row: dict[str, Any]) -> None:
        ended = f"[red]failed:[/] {escape(row['failed'])}" if "failed" in row else "built"
        console.print(f"  {escape(name)}  {ended}", soft_wrap=True)

    rows = sweeps.run_sweep(asked, options, on_end)
    if as_json:
        click.echo(json.dumps({"builds": rows}, ensure_ascii=False))
    else:
        _show(rows)
    if failed := sum("failed" in row for row in rows):
        click.echo(f"error: {failed} of {count} builds failed", err=True)
        sys.exit(1)


def _show(rows: list[dict[str, Any]]) -> None:
    """A line for each file."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("build", "file", "removed", "size", "bits per byte", "tokens/s"):
        table.add_column(title, justify="left" if title in ("build", "file") else "right", overflow="fold")
    for row in rows:
        for made in row.get("files", []):
            table.add_row(
                row["name"],
                made["file"],
                f"{row['sparsity']:.1%}",
                f"{made['bytes'] / 1e6:.1f} MB",
                f"{made['bits_per_byte']:.3f}",
                f"{made['tokens_per_second']:,.0f}",
            )
        if "failed" in row:
            table.add_row(row["name"], "failed", "", "", "", "")
    Console().print(table)
