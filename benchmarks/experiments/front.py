"""Size against quality, F16 to the smallest types: dense, dense fine-tuned, ours, blocks removed.

    python benchmarks/experiments/front.py [--threads N]

Every file is made with the importance matrix of its own calibration and measured by llama.cpp on the
test windows. "llama.cpp --prune-layers" takes the blocks that our `blocks` method removes out of the dense
F16 file with llama.cpp's own option, which neither refits nor fine-tunes. All models that are fine-tuned see
the same tokens. Steps are finished stages, shared with benchmarks/experiments/methods.py. Writes
benchmarks/results/front.json.
"""

from __future__ import annotations

import argparse
import ctypes
from pathlib import Path
from typing import Any

from benchmarks.lib.bench import PUBLISHED_TOKENS, Bench, opened, write
from benchmarks.lib.files import F16, f16_file, gguf_files, quality
from benchmarks.lib.results import RESULTS

RESULT = RESULTS / "front.json"
TYPES = ("q8_0", "q6_k", "q5_0", "q4_k_m", "iq4_nl", "q4_0", "q3_k_m", "iq3_xs", "q2_k")


def prune_layers(source: Path, destination: Path, kind: str, layers: list[int], threads: int) -> None:
    """Quantize a GGUF file without some blocks, with llama.cpp's own option; SystemExit if it fails."""
    import llama_cpp

    numbers = (ctypes.c_int32 * (len(layers) + 1))(*sorted(layers), -1)  # a list that ends with -1
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind.upper()}")
    parameters.nthread = threads
    parameters.prune_layers = ctypes.cast(numbers, type(parameters.prune_layers))
    code = llama_cpp.llama_model_quantize(
        str(source).encode(), str(destination).encode(), ctypes.byref(parameters)
    )
    if code:
        raise SystemExit(f"llama.cpp could not prune and quantize to {kind}")


def files(bench: Bench, name: str, checkpoint: Path, importance: Path) -> list[dict[str, Any]]:
    """A row per type of one model. No parity gate: how far a file is from its checkpoint is the question."""
    rows = []
    for kind, made, holds in gguf_files(bench, name, checkpoint, importance, TYPES):
        path = made.path / ("model.gguf" if kind != "f16" else F16)
        more = {"holds": holds} if holds else {}
        rows.append({"model": name, "type": kind, **more, **quality(bench, path, made.digest)})
    return rows


def without_layers(
    bench: Bench, checkpoint: Path, importance: Path, layers: list[int]
) -> list[dict[str, Any]]:
    """llama.cpp's own depth pruning of the dense model, in two types."""
    source, rows = f16_file(bench, "dense", checkpoint, importance), []
    for kind in ("q8_0", "q4_0"):

        def make(out: Path, kind: str = kind) -> dict[str, Any]:
            prune_layers(source.path / F16, out / "model.gguf", kind, layers, bench.recipe.threads)
            return {}

        made = bench.stage(
            "prune-layers",
            make,
            settings={"type": kind, "layers": layers},
            inputs={"f16": source.digest},
        )
        row = {"model": "llama.cpp --prune-layers", "type": kind, "layers": sorted(layers)}
        rows.append({**row, **quality(bench, made.path / "model.gguf", made.digest)})
    return rows


def main() -> None:
    """Make and measure every file, write the result."""
    from minigpt_edge.prune.context import CHECKPOINT, IMPORTANCE
    from minigpt_edge.recipe import PAPER_SPARSITY
    from minigpt_edge.stages.parallel import all_cores

    parser = argparse.ArgumentParser(description="Size against quality, type by type.")
    parser.add_argument("--threads", type=int, default=all_cores())
    bench = opened(parser.parse_args().threads)
    with bench.log:
        whole = bench.prune(sparsity=0.0, min_count=0)  # nothing is removed: for its importance matrix
        ours = bench.prune(sparsity=PAPER_SPARSITY)
        trimmed = {"min_count": 5, "calibration_tokens": PUBLISHED_TOKENS}
        depth = bench.prune(method="blocks", sparsity=0.42, **trimmed)
        alone = bench.prune(method="blocks", sparsity=0.3, min_count=0, calibration_tokens=32_768)
        importance = whole.path / IMPORTANCE
        rows = files(bench, "dense", bench.base.path, importance)
        tuned = bench.recover(whole, distill=0.0)
        rows += files(bench, "dense, fine-tuned", tuned.path, importance)
        rows += files(bench, "pruned, not fine-tuned", ours.path / CHECKPOINT, ours.path / IMPORTANCE)
        for name, pruned in (("ours", ours), ("blocks", depth)):
            rows += files(bench, name, bench.recover(pruned).path, pruned.path / IMPORTANCE)
        for sparsity in (0.2, 0.6):
            pruned = bench.prune(sparsity=sparsity)
            recovered = bench.recover(pruned)
            rows += files(bench, f"ours, {sparsity:.0%}", recovered.path, pruned.path / IMPORTANCE)
        untaught = bench.recover(ours, distill=0.0)
        rows += files(bench, "ours, no distillation", untaught.path, ours.path / IMPORTANCE)
        layers = alone.metrics["removed_blocks"]
        rows += without_layers(bench, bench.base.path, importance, layers)
        write(RESULT, bench, {"rows": rows})


if __name__ == "__main__":
    main()
