"""bench: a model file's speed and memory on this machine."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--file", help="Which of the bundle's model files (default: its first).")
@click.option("--threads", type=click.IntRange(1), help="CPU threads (default: all).")
@click.option("--prompt-tokens", type=click.IntRange(1), default=512, show_default=True)
@click.option("--generate-tokens", type=click.IntRange(1), default=64, show_default=True)
@click.option("--repeat", type=click.IntRange(1), default=5, show_default=True)
@click.option("--texts", type=click.Path(path_type=Path), help="Also score the windows of this texts.json.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the whole JSON to this file.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole JSON.")
def bench(
    bundle: Path, file: str | None, texts: Path | None, output: Path | None, as_json: bool, **options: Any
) -> None:
    """Measure BUNDLE (a directory or a .gguf file) in a process of its own."""
    from minigpt_edge_runtime.bundle import read_bundle
    from minigpt_edge_runtime.files import write_json
    from minigpt_edge_runtime.fresh import run_fresh

    model = read_bundle(bundle, file).model_path
    progress = sys.stderr.isatty()
    result: dict[str, Any] = {"speed": run_fresh("speed", model, progress=progress, **options)}
    if texts is not None:
        threads = options["threads"]
        result["quality"] = run_fresh(
            "quality", model, texts=texts.resolve(), threads=threads, progress=progress
        )
    if output is not None:
        write_json(output, result)
    if as_json:
        click.echo(json.dumps(result, indent=2))
    else:
        _show(result)


def _show(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    speed = result["speed"]
    model, device, settings = speed["model"], speed["device"], speed["settings"]
    title = f"{model['file']} · {speed['threads']} threads · {device['cpu'] or device['architecture']}"
    table = Table(title=title, show_header=False, title_justify="left")
    first, token = speed["ttft_ms"], speed["itl_ms"]
    rows = [
        (
            "file",
            f"{model['bytes'] / 1e6:,.1f} MB, {model['quantization']}, "
            f"{model['parameters'] / 1e6:,.1f} M parameters",
        ),
        ("load", f"{speed['load_seconds']:.2f} s"),
        (f"first token ({settings['first_token_prompt']}-token prompt)", _spread(first)),
        ("prefill", f"{speed['prefill_tokens_per_second']:,.1f} tokens/s"),
        ("decode", f"{speed['decode_tokens_per_second']:,.1f} tokens/s"),
        ("between tokens", _spread(token)),
        ("peak memory", "unknown" if speed["peak_rss_mb"] is None else f"{speed['peak_rss_mb']:,.0f} MB"),
    ]
    if "quality" in result:
        quality = result["quality"]
        error = "" if quality["stderr"] is None else f" ± {quality['stderr']:.4f}"
        rows.append(("bits per byte", f"{quality['bits_per_byte']:.4f}{error}, {quality['windows']} windows"))
        rows.append(("perplexity per base token", f"{quality['perplexity_per_base_token']:.3f}"))
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def _spread(times: dict[str, float]) -> str:
    return f"{times['p50']:.1f} ms (p90 {times['p90']:.1f}, p99 {times['p99']:.1f})"
