"""Size against quality, F16 to the smallest types: dense, dense fine-tuned, ours, blocks removed.

    python benchmarks/front.py [--threads N]

Every file is made with the importance matrix of its own calibration and measured by llama.cpp on the
test windows. "llama.cpp --prune-layers" takes the blocks that our `blocks` method removes out of the dense
F16 file with llama.cpp's own option, which neither refits nor fine-tunes. All models that are fine-tuned see
the same tokens. Steps are finished stages, shared with benchmarks/methods.py. Writes
benchmarks/results/front.json.
"""

from __future__ import annotations

import argparse
import ctypes
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import methods

RESULT = methods.RESULTS / "front.json"
F16 = "model-f16.gguf"
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


def files(bench: methods.Bench, name: str, checkpoint: Path, importance: Path) -> list[dict[str, Any]]:
    """A row per type of one model. No parity gate: how far a file is from its checkpoint is the question."""
    rows = []
    for kind, made, holds in gguf_files(bench, name, checkpoint, importance, TYPES):
        path = made.path / ("model.gguf" if kind != "f16" else F16)
        held = {"holds": holds} if holds else {}
        rows.append({"model": name, "type": kind, **held, **quality(bench, path, made.digest)})
    return rows


def gguf_files(
    bench: methods.Bench, name: str, checkpoint: Path, importance: Path, types: Sequence[str]
) -> Iterator[tuple[str, Any, dict[str, int]]]:
    """(type, stage, parameters by tensor type) of a model's F16 file and of those quantized from it."""
    from minigpt_edge.ship.export_stages import CODE, f16_stage
    from minigpt_edge.ship.job import Export
    from minigpt_edge.stages.stage import StageSpec, run_stage
    from minigpt_edge_export.gguf.quantize import imatrix_from_file, quantize, tensor_types
    from minigpt_edge_runtime.files import sha256_file

    threads = bench.recipe.threads
    source = f16_stage(
        Export(bench.work, checkpoint, importance, bench.text, {"name": name}, threads, bench.log)
    )
    yield "f16", source, {}
    for kind in types:

        def make(out: Path, kind: str = kind) -> dict[str, Any]:
            imatrix = imatrix_from_file(importance)
            quantize(source.path / F16, out / "model.gguf", kind, imatrix=imatrix, threads=threads)
            return {"tensor_types": tensor_types(out / "model.gguf")}

        made = run_stage(
            bench.work,
            StageSpec(
                "front-file",
                settings={"type": kind},
                inputs={"f16": source.digest, "imatrix": sha256_file(importance)},
                code=CODE,
            ),
            make,
        )
        yield kind, made, {k: part["parameters"] for k, part in made.metrics["tensor_types"].items()}


def quality(bench: methods.Bench, model: Path, digest: str) -> dict[str, Any]:
    """Bytes and test quality of a GGUF file, kept as a stage."""
    from minigpt_edge.stages.stage import StageSpec, run_stage
    from minigpt_edge_runtime.bench.fresh import run_fresh

    texts = bench.text.path / "test.texts.json"
    stage = run_stage(
        bench.work,
        StageSpec(
            "file-quality",
            settings={"threads": bench.recipe.threads},
            inputs={"model": digest, "test": bench.text.manifest["outputs"]["test.texts.json"]},
            code=("minigpt_edge.evaluation", "minigpt_edge_runtime"),
        ),
        make=lambda out: run_fresh("quality", model, texts=str(texts), threads=bench.recipe.threads),
    )
    keys = ("bits_per_byte", "stderr", "perplexity_per_base_token")
    return {"bytes": model.stat().st_size, **{key: stage.metrics[key] for key in keys}}


def without_layers(
    bench: methods.Bench, checkpoint: Path, importance: Path, layers: list[int]
) -> list[dict[str, Any]]:
    """llama.cpp's own depth pruning of the dense model, in two types."""
    from minigpt_edge.ship.export_stages import f16_stage
    from minigpt_edge.ship.job import Export
    from minigpt_edge.stages.stage import StageSpec, run_stage

    job = Export(
        bench.work, checkpoint, importance, bench.text, {"name": "dense"}, bench.recipe.threads, bench.log
    )
    source, rows = f16_stage(job), []
    for kind in ("q8_0", "q4_0"):

        def make(out: Path, kind: str = kind) -> dict[str, Any]:
            prune_layers(source.path / F16, out / "model.gguf", kind, layers, bench.recipe.threads)
            return {}

        made = run_stage(
            bench.work,
            StageSpec(
                "prune-layers",
                settings={"type": kind, "layers": layers},
                inputs={"f16": source.digest},
                code=(),
            ),
            make,
        )
        row = {"model": "llama.cpp --prune-layers", "type": kind, "layers": sorted(layers)}
        rows.append({**row, **quality(bench, made.path / "model.gguf", made.digest)})
    return rows


def main() -> None:
    """Make and measure every file, write the result."""
    from minigpt_edge.prune.prepare import CHECKPOINT
    from minigpt_edge.prune.prune import IMPORTANCE
    from minigpt_edge.recipe import PAPER_SPARSITY
    from minigpt_edge.stages.parallel import all_cores

    parser = argparse.ArgumentParser(description="Size against quality, type by type.")
    parser.add_argument("--threads", type=int, default=all_cores())
    bench = methods.opened(parser.parse_args().threads)
    with bench.log:
        whole = bench.prune(sparsity=0.0, min_count=0)  # nothing goes: for its importance matrix
        ours = bench.prune(sparsity=PAPER_SPARSITY)
        trimmed = {"min_count": 5, "calibration_tokens": methods.PUBLISHED_TOKENS}
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
        methods.write(RESULT, bench, {"rows": rows})


if __name__ == "__main__":
    main()
