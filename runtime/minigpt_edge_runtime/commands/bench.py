"""bench: a latency report of a model file on this machine."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from minigpt_edge_runtime.bundle.open import Bundle, open_bundle
from minigpt_edge_runtime.commands.options import FILE
from minigpt_edge_runtime.errors import UsageError


class Lengths(click.ParamType):
    """Numbers of tokens, separated by commas."""

    name = "N,N,…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        try:
            return [int(part) for part in str(value).split(",")]
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers like 128,512", param, ctx)


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@FILE
@click.option(
    "--profile",
    type=click.Choice(["cpu", "laptop"]),
    default="laptop",
    show_default=True,
    help="cpu: one thread, the small device. laptop: one per physical core.",
)
@click.option("--threads", type=click.IntRange(1), help="CPU threads instead of the profile's.")
@click.option("--memory-limit", metavar="SIZE", help="End the model's process above this, e.g. 512M.")
@click.option("--prompt-lengths", type=Lengths(), help="Tokens of the prompts.  [default: 128,512]")
@click.option("--depths", type=Lengths(), help="Tokens in the cache when decoding begins.  [default: 0,512]")
@click.option("--generate-tokens", type=click.IntRange(1), help="Tokens to decode.  [default: 64]")
@click.option(
    "--repeat",
    "repetitions",
    type=click.IntRange(1),
    help="Runs of each test, after a warm-up.  [default: 5]",
)
@click.option("--texts", type=click.Path(path_type=Path), help="Score this held-out.json or texts.json.")
@click.option("--no-quality", is_flag=True, help="Do not score the bundle's held-out text.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the JSON to this file.")
@click.option("--json", "as_json", is_flag=True, help="Print the JSON instead of a table.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["report", "llama-bench"]),
    default="report",
    show_default=True,
    help="Which JSON: ours, or what llama-bench -o json prints.",
)
def bench(
    bundle: Path,
    file: str | None,
    profile: str,
    memory_limit: str | None,
    texts: Path | None,
    no_quality: bool,
    **options: Any,
) -> None:
    """Measure BUNDLE (a directory or a model file) in processes of its own: speed, memory and quality.

    Lengths are cut to what the model's context holds, unless they are given.
    """
    from minigpt_edge_runtime.bench.bench import bench_bundle
    from minigpt_edge_runtime.bench.memory import parse_size
    from minigpt_edge_runtime.bench.profiles import Changes
    from minigpt_edge_runtime.files import check_writable

    output, as_json, form = (options.pop(name) for name in ("output", "as_json", "form"))
    if no_quality and texts is not None:
        raise UsageError("--texts and --no-quality contradict each other", "give one of them")
    limit = None if memory_limit is None else parse_size(memory_limit)
    if output is not None:
        check_writable(output)
    found = open_bundle(bundle, file)
    report = bench_bundle(
        found,
        profile,
        Changes(**options),
        texts=None if no_quality else texts or _held_out(found),
        memory_limit=limit,
        progress=sys.stderr.isatty(),
    )
    _put_out(report, output, as_json, form)


def _put_out(report: dict[str, Any], output: Path | None, as_json: bool, form: str) -> None:
    """Write the report's JSON where that was asked for, and print it or a table."""
    from minigpt_edge_runtime.bench.llama_bench import as_llama_bench
    from minigpt_edge_runtime.files import write_json

    content = report if form == "report" else as_llama_bench(report)
    if output is not None:
        write_json(output, content)
    if as_json or (form == "llama-bench" and output is None):
        click.echo(json.dumps(content, indent=2, ensure_ascii=False))
    else:
        _show(report)


def _held_out(bundle: Bundle) -> Path | None:
    from minigpt_edge_runtime.bench.bench import held_out_file
    from minigpt_edge_runtime.scoring.held_out import HELD_OUT

    path = held_out_file(bundle)
    if path is None:
        click.echo(
            f"note: there is no {HELD_OUT} here, so quality is not measured; --texts gives one", err=True
        )
    return path


def _show(report: dict[str, Any]) -> None:
    from rich.console import Console

    from minigpt_edge_runtime.bench.table import noise, print_report

    print_report(report, Console(soft_wrap=True))
    warning = noise(report)
    if warning:
        click.echo(f"warning: {warning}", err=True)
