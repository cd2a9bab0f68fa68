"""build: from a base model and a domain's text to a bundle."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from minigpt_edge.prune.methods.registry import DEFAULT_METHOD, METHODS
from minigpt_edge.recipe import PAPER_SPARSITY, Recipe, recipe_of
from minigpt_edge.stages import parallel

if TYPE_CHECKING:
    from minigpt_edge.pipeline import Built

_PATH = click.Path(path_type=Path)


def _number(name: str, kind: click.ParamType, text: str, default: float | None = None) -> Any:
    """An option that takes a number."""
    return click.option(name, type=kind, default=default, show_default=default is not None, help=text)


@click.command()
@click.option("--domain", help="A known domain (see `minigpt-edge domains`).")
@click.option(
    "--source", help="Which of the domain's sources, such as hub (default: the one that needs no hub)."
)
@click.option("--corpus", multiple=True, help="Text instead of a domain: files, folders or a hub dataset id.")
@click.option(
    "--text-column",
    multiple=True,
    help="The column that holds the text in files of rows or a dataset; repeated where files differ.",
)
@click.option("--model", help="Short name, Hugging Face directory, GGUF file or hub id.")
@click.option(
    "--adapter",
    help="A LoRA adapter, as peft saves it, to merge into the model first; directory or hub id. Without "
    "--model, into the base that it names.",
)
@click.option(
    "--target", "targets", multiple=True, default=("gguf-q4",), show_default=True, help="May be repeated."
)
@click.option("--out", type=_PATH, help="The bundle's directory [default: MODEL-DOMAIN].")
@_number(
    "--sparsity",
    click.FloatRange(0, 1, max_open=True),
    "Fraction of the parameters to remove, vocabulary counted; of the blocks' weights for masks "
    f"[default: {PAPER_SPARSITY}].",
)
@click.option("--max-size", metavar="SIZE", help="Instead: bytes of the GGUF file at most, such as 40MB.")
@click.option("--max-params", metavar="N", help="Instead: parameters at most, such as 60M.")
@_number(
    "--min-speedup",
    click.FloatRange(1),
    "Instead: decoding over the dense model's at the same type, predicted from the bytes it reads.",
)
@_number(
    "--threshold",
    click.FloatRange(0),
    "Instead, with --method contextual: remove units up to this mean |activation| (Mini-GPTs' epsilon).",
)
@_number(
    "--embedding-threshold",
    click.FloatRange(0, 1),
    "With --method contextual: remove tokens up to this share of the training tokens.",
)
@click.option(
    "--method",
    type=click.Choice(list(METHODS)),
    default=DEFAULT_METHOD,
    show_default=True,
    help="How it is decided what is kept (see `minigpt-edge methods`).",
)
@click.option(
    "--pattern",
    help="structured, or for masks unstructured, 2:4, 4:8: zeros that make no file smaller and no CPU faster "
    "[default: the method's].",
)
@click.option(
    "--reductions",
    metavar="L:M:RHO,...",
    help="With --method laser: block, matrix (q k v o gate up down attn mlp all) and share of the rank that "
    "is kept [default: searched on held-out text].",
)
@click.option(
    "--widths",
    type=click.Choice(["free", "equal", "global"]),
    help="Whether blocks may differ in size, by estimated loss (free) or one cut over all scores (global); "
    "equal ones load in stock transformers and as GGUF llama [default: the method's].",
)
@click.option(
    "--refit/--no-refit",
    default=None,
    help="Least-squares refit of the kept weights [default: what the method does].",
)
@click.option("--plan", type=_PATH, help="Keep what this plan.json keeps.")
@_number(
    "--min-count",
    click.IntRange(0),
    "Tokens seen less often in the training text are removed from the vocabulary; 0 keeps all [default: with "
    "--widths free as many as the loss says, under one budget with the blocks; else 5].",
)
@click.option("--keep-tokens", type=_PATH, help="A file of terms, one a line, to keep in the vocabulary.")
@_number(
    "--calibration-tokens",
    click.IntRange(1),
    "Training text that the model is measured on and refitted to "
    f"[default: {Recipe.calibration_tokens:,}, or what --time leaves for it].",
)
@_number(
    "--recover-tokens",
    click.IntRange(1),
    "Training text that the pruned model is fine-tuned on "
    f"[default: {Recipe.recover_tokens:,}, or what --time leaves for it].",
)
@click.option(
    "--time",
    metavar="TIME",
    help="Instead of both: what the whole build may take on this machine, downloads left out, such as 15m, "
    "1h30m or 8h. Speeds are measured, and the build says what it chose.",
)
@click.option(
    "--recover-until",
    type=click.Choice(["dense"]),
    help="Stop fine-tuning when validation perplexity is the dense model's (the rule of Mini-GPTs).",
)
@_number(
    "--distill",
    click.FloatRange(0, 1),
    "Share of the dense model's predictions in what fine-tuning aims at, on the text that was calibrated on, "
    "falling as training goes on.",
    Recipe.distill,
)
@_number(
    "--lora-rank",
    click.IntRange(1),
    "Fine-tune LoRA adapters of this rank, merged at the end, instead of all weights.",
)
@click.option(
    "--qat/--no-qat",
    default=None,
    help="Fine-tune the numbers that the file will hold, or round afterwards, which is better for four and "
    "five bits so far (docs/quantization.md) [default: --qat for gguf-q2_0 alone].",
)
@click.option("--no-recover", is_flag=True, help="Do without fine-tuning.")
@click.option("--no-baseline", is_flag=True, help="Don't measure the dense model.")
@click.option("--dry-run", is_flag=True, help="Print the plan and the predicted size, and stop.")
@_number("--seed", click.IntRange(0), "", Recipe.seed)
@click.option("--threads", type=click.IntRange(1), default=parallel.all_cores, show_default="all cores")
@click.option(
    "--device",
    metavar="DEVICE",
    default=Recipe.device,
    show_default=True,
    help="Where to calibrate, prune, fine-tune and evaluate: cpu, cuda, cuda:1, mps, xpu, or auto, the "
    "accelerator with the most free memory. Files are made and measured on the processor.",
)
@click.option(
    "--max-memory",
    metavar="SIZE",
    help="Memory that pruning and recovery may take, such as 4GB, by an estimate [default: what is free].",
)
@click.option("--work", type=_PATH, help="Where finished stages are kept [default: the cache].")
@click.option("--offline", is_flag=True, help="Never touch the network.")
@click.option("--force", is_flag=True, help="Replace the files of an earlier bundle in --out.")
@click.option("--log-json", is_flag=True, help="Log lines of JSON to stderr.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON on stdout.")
def build(
    as_json: bool,
    log_json: bool,
    dry_run: bool,
    **options: Any,
) -> None:
    """Make a small model for a domain.

    Every finished stage is kept: interrupted, the same command continues where it stopped; repeated, it does
    nothing.
    """
    from rich.console import Console

    from minigpt_edge import pipeline
    from minigpt_edge.report.page import print_table
    from minigpt_edge.stages.console import Log
    from minigpt_edge_runtime.errors import UsageError

    if dry_run and parallel.started() > 1:
        raise UsageError("--dry-run is for one process", "start it without accelerate or torchrun")
    recipe = recipe_of(**options)
    if dry_run:
        with Log(log_json=log_json) as log:
            plan = pipeline.dry_run(recipe, log)
        click.echo(json.dumps(plan) if as_json else _plan_text(plan))
        return
    built = _build(recipe, log_json)
    if built is None:
        return
    if as_json:
        click.echo(json.dumps(built.report.to_json(), ensure_ascii=False))
    else:
        print_table(built.report, Console())
    for warning in built.report.warnings:
        click.echo(f"{'warning' if warning.sure else 'note'}: {warning.text}", err=True)
    done = "is up to date, nothing to do" if built.unchanged else "is ready"
    click.echo(f"the pruned model as a Hugging Face directory: {built.checkpoint}", err=True)
    click.echo(f'{built.directory} {done}; try: minigpt-edge run {built.directory} "…"', err=True)


def _build(recipe: Recipe, log_json: bool) -> Built | None:
    """Build, or take part in it and return None: of several processes the first alone has the outcome."""
    from minigpt_edge import pipeline
    from minigpt_edge.stages.console import Log

    with parallel.joined():
        if parallel.rank():
            pipeline.follow(recipe, Log(quiet=True))
            return None
        with Log(log_json=log_json) as log:
            return pipeline.build(recipe, log, command=shlex.join(["minigpt-edge", *sys.argv[1:]]))


def _plan_text(plan: dict[str, Any]) -> str:
    """A plan as lines for people."""
    dense, kept = plan["parameters"]["dense"], plan["parameters"]["kept"]
    lines = [
        f"parameters  {dense / 1e6:.1f} M -> {kept / 1e6:.1f} M ({plan['sparsity']:.2%} removed)",
        f"vocabulary  {plan['vocabulary'][0]:,} -> {plan['vocabulary'][1]:,}",
        f"widths      {_numbers(plan['widths'][0])} -> {_numbers(plan['widths'][1])}",
        f"kv groups   {_numbers(plan['kv_groups'][0])} -> {_numbers(plan['kv_groups'][1])}",
    ]
    for name, target in plan["targets"].items():
        lines.append(
            f"{name:<11} {target['bytes'] / 1e6:.2f} MB as {target['type'].upper()}, decoding "
            f"{target['speedup']:.2f} x the dense model's where decoding is memory-bandwidth-bound"
        )
    return "\n".join(lines)


def _numbers(value: int | Sequence[int]) -> str:
    return " ".join(map(str, [value] if isinstance(value, int) else value))
