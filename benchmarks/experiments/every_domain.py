"""What the default build makes of each of the five domains, beside the dense model fine-tuned alike.

    python benchmarks/experiments/every_domain.py [--only DOMAIN ...]
        [--models pruned|on-grid|fine-tuned|all] [--tokens N] [--threads N]

Bits per byte and perplexity of the GGUF files in llama.cpp, on each domain's test split: the dense model as
published, fine-tuned on as many tokens as recovery takes, pruned by 42 % (before recovery, after it, and in
four bits, quantized afterwards or trained for). Steps are finished stages, shared with `minigpt-edge build`.
Writes benchmarks/results/every_domain.json, a row for each domain, number of tokens and part of the models;
rows not asked for are kept. The table in docs/results.md puts them beside those of
benchmarks/results/domains.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from benchmarks.experiments.domains import DOMAINS, FOUR_BITS
from benchmarks.lib.bench import Bench, opened
from benchmarks.lib.files import F16, f16_file, gguf_files, quality
from benchmarks.lib.results import RESULTS, provenance

RESULT = RESULTS / "every_domain.json"
SPARSITY = 0.42  # as in domains.json
TUNED = "dense, fine-tuned"


def files(bench: Bench, name: str, checkpoint: Path, importance: Path, *types: str) -> dict[str, Any]:
    """Bytes and test quality of a checkpoint's F16 file and of those of other types."""
    found = {}
    for kind, made, _ in gguf_files(bench, name, checkpoint, importance, types):
        path = made.path / (F16 if kind == "f16" else "model.gguf")
        found[kind] = quality(bench, path, made.digest)
    return found


def pruned_row(bench: Bench) -> dict[str, Any]:
    """The dense, the pruned and the recovered model: how they were made and what their files score."""
    from minigpt_edge.prune.context import CHECKPOINT, IMPORTANCE

    pruned = bench.prune(sparsity=SPARSITY)
    importance = pruned.path / IMPORTANCE
    recovered = bench.recover(pruned, sparsity=SPARSITY)
    return {
        "calibration_tokens": bench.recipe.calibration_tokens,
        "tokens": recovered.metrics["tokens"],
        "rounding": "GPTQ",
        "vocabulary": pruned.metrics["vocabulary"],
        "estimated": pruned.metrics["estimated"],
        "seconds": {"pruning": _seconds(pruned), "recovery": _seconds(recovered)},
        "history": _history(recovered),
        "files": {
            "dense": files(bench, "dense", bench.base.path, importance),
            "pruned": files(bench, "pruned", pruned.path / CHECKPOINT, importance),
            "recovered": files(bench, "recovered", recovered.path, importance, FOUR_BITS),
        },
    }


def grid_row(bench: Bench) -> dict[str, Any]:
    """The model whose recovery trained the numbers of its four-bit file, as `build` makes it."""
    from minigpt_edge.prune.context import IMPORTANCE

    pruned = bench.prune(sparsity=SPARSITY)
    recovered = bench.recover(pruned, kind=FOUR_BITS.upper(), sparsity=SPARSITY)
    made = files(bench, "on grid", recovered.path, pruned.path / IMPORTANCE, FOUR_BITS)
    return {
        "calibration_tokens": bench.recipe.calibration_tokens,
        "tokens": recovered.metrics["tokens"],
        "seconds": {"pruning": _seconds(pruned), "recovery": _seconds(recovered)},
        "training_seconds": recovered.metrics["training_seconds"],
        "history": _history(recovered),
        "files": {"recovered on the grid": made},
    }


def tuned_row(bench: Bench) -> dict[str, Any]:
    """The dense model fine-tuned on as many tokens."""
    dense = bench.train(bench.base.path, bench.base.fingerprint, bench.recipe.recover_tokens)
    file = f16_file(bench, TUNED, dense.path)
    return {
        "tokens": dense.metrics["tokens"],
        "seconds": {"fine-tuning": _seconds(dense)},
        "history": _history(dense),
        "files": {TUNED: {"f16": quality(bench, file.path / F16, file.digest)}},
    }


PARTS = {"pruned": pruned_row, "on-grid": grid_row, "fine-tuned": tuned_row}


def products() -> str:
    """The precision in which this machine multiplies matrices: "bfloat16" or "float32"."""
    from minigpt_edge.models.precision import compute_dtype

    return str(compute_dtype()).removeprefix("torch.")


def _seconds(stage: Any) -> float:
    return float(stage.manifest["seconds"])


def _history(stage: Any) -> list[dict[str, float]]:
    """Tokens and bits per byte of the evaluations on validation windows."""
    keys = ("tokens", "bits_per_byte")
    return [{key: entry[key] for key in keys} for entry in stage.metrics["history"] if keys[1] in entry]


def main() -> None:
    """Run the domains that are asked for, keeping the other rows."""
    from minigpt_edge.recipe import Recipe
    from minigpt_edge.stages.parallel import all_cores
    from minigpt_edge_runtime.files import write_json

    parser = argparse.ArgumentParser(description="The default build in every domain.")
    parser.add_argument("--only", nargs="+", choices=DOMAINS, default=list(DOMAINS))
    parser.add_argument("--models", choices=[*PARTS, "all"], default="all")
    parser.add_argument("--tokens", type=int, default=Recipe.recover_tokens, help="of recovery")
    parser.add_argument("--threads", type=int, default=all_cores())
    given = parser.parse_args()
    parts = PARTS if given.models == "all" else {given.models: PARTS[given.models]}
    for domain in given.only:
        bench = opened(given.threads, domain=domain)
        bench.recipe = dataclasses.replace(bench.recipe, recover_tokens=given.tokens)
        with bench.log:
            for part, row_of in parts.items():
                row = {"domain": domain, "asked_tokens": given.tokens, "models": part, **row_of(bench)}
                row |= {"threads": bench.recipe.threads, "products": products(), **provenance()}
                rows = json.loads(RESULT.read_text())["rows"] if RESULT.exists() else []
                rows = [one for one in rows if _key(one) != _key(row)] + [row]
                write_json(RESULT, {"model": bench.base.name, "rows": sorted(rows, key=_key)})
                bench.log.line("written", f"{RESULT.name}: {domain}, {part}, {given.tokens:,} tokens")


def _key(row: dict[str, Any]) -> tuple[int, int, int]:
    return DOMAINS.index(row["domain"]), row["asked_tokens"], list(PARTS).index(row["models"])


if __name__ == "__main__":
    main()
