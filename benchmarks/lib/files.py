"""GGUF files of a checkpoint and their quality, each a cached stage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.lib.bench import MEASURE_CODE, Bench
from minigpt_edge.ship.export_stages import CODE, f16_stage
from minigpt_edge.ship.job import Export
from minigpt_edge.ship.reference import checkpoint_hashes
from minigpt_edge_runtime.files import sha256_file

F16 = "model-f16.gguf"


def f16_file(bench: Bench, name: str, checkpoint: Path, importance: Path | None = None) -> Any:
    """The stage of a model's F16 file."""
    return f16_stage(_job(bench, name, checkpoint, importance))


def _job(bench: Bench, name: str, checkpoint: Path, importance: Path | None) -> Export:
    threads = bench.recipe.threads
    return Export(bench.work, checkpoint, importance, bench.text, {"name": name}, threads, bench.log)


def gguf_files(
    bench: Bench, name: str, checkpoint: Path, importance: Path, types: Sequence[str]
) -> Iterator[tuple[str, Any, dict[str, int]]]:
    """(type, stage, parameters by tensor type) of a model's F16 file and of those quantized from it."""
    from minigpt_edge.ship.choose_type import wanted_types
    from minigpt_edge.ship.grams import round_matrices
    from minigpt_edge_export.gguf.quantize import imatrix_from_file, quantize
    from minigpt_edge_runtime.formats.gguf_header import read_header

    threads = bench.recipe.threads
    source = f16_file(bench, name, checkpoint, importance)
    yield "f16", source, {}
    for kind in types:

        def make(out: Path, kind: str = kind) -> dict[str, Any]:
            imatrix, model = imatrix_from_file(importance), out / "model.gguf"
            quantize(source.path / F16, model, kind, imatrix=imatrix, threads=threads)
            job = _job(bench, name, checkpoint, importance)
            round_matrices(job, kind, wanted_types(checkpoint, [kind], imatrix=True)).improve(model)
            return {"tensor_types": read_header(model).types()}

        made = bench.stage(
            "front-file",
            make,
            settings={"type": kind},
            inputs={
                "f16": source.digest,
                "imatrix": sha256_file(importance),
                "corpus": bench.text.digest,
                **checkpoint_hashes(checkpoint),
            },
            code=CODE,
        )
        yield kind, made, {k: part["parameters"] for k, part in made.metrics["tensor_types"].items()}


def quality(bench: Bench, model: Path, digest: str) -> dict[str, Any]:
    """Bytes and test quality of a GGUF file, cached as a stage."""
    from minigpt_edge_runtime.bench.fresh import run_fresh

    texts = bench.text.path / "test.texts.json"
    stage = bench.stage(
        "file-quality",
        lambda out: run_fresh("quality", model, texts=str(texts), threads=bench.recipe.threads),
        settings={"threads": bench.recipe.threads},
        inputs={"model": digest, "test": bench.text.manifest["outputs"]["test.texts.json"]},
        code=MEASURE_CODE,
    )
    keys = ("bits_per_byte", "stderr", "perplexity_per_base_token")
    return {"bytes": model.stat().st_size, **{key: stage.metrics[key] for key in keys}}
