"""inspect: what is in a file or directory."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def inspect(path: Path, as_json: bool) -> None:
    """Show what is in PATH: a GGUF or ONNX model, bundle, checkpoint directory, plan or report."""
    from minigpt_edge_runtime.bundle.inspect import describe
    from minigpt_edge_runtime.bundle.inspect_table import render

    description = describe(path)
    if as_json:
        click.echo(json.dumps(description, indent=2, ensure_ascii=False))
    else:
        from rich.console import Console

        render(description, Console())
