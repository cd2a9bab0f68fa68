"""A finished checkpoint in four bits: rounded by the formats' own quantizers, and by GPTQ.

    python benchmarks/experiments/rounding.py DOMAIN CHECKPOINT IMATRIX
        [--deal] [--types TYPE ...] [--threads N]

CHECKPOINT is a recovered model of the domain and IMATRIX its imatrix.safetensors, as a build's stages leave
them; --deal gives one from before pruning did so the order of inputs of `minigpt_edge.prune.order`. Bits per
byte of the files on the domain's test split, and their divergence from the checkpoint (KL, nats a token,
validation windows), in llama.cpp and onnxruntime. "usual" is llama.cpp's quantizer, or onnxruntime's on
clipped blocks, with the importance matrix. Writes benchmarks/results/rounding.json after every file, a row
for each domain and order.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.experiments.domains import DOMAINS
from benchmarks.lib.bench import opened
from benchmarks.lib.results import RESULTS, provenance
from minigpt_edge.ship.job import Export

RESULT = RESULTS / "rounding.json"


def gguf(job: Export, kind: str, folder: Path, gptq: bool) -> Path:
    """A GGUF file, its blocks' matrices by llama.cpp or by GPTQ."""
    from minigpt_edge.ship.choose_type import wanted_types
    from minigpt_edge.ship.grams import round_matrices
    from minigpt_edge_export.gguf.quantize import imatrix_from_file, quantize

    assert job.importance is not None
    path = folder / "model.gguf"
    imatrix = imatrix_from_file(job.importance)
    quantize(folder.parent / "f16.gguf", path, kind, imatrix=imatrix, threads=job.threads)
    if gptq:
        round_matrices(job, kind, wanted_types(job.checkpoint, [kind], imatrix=True)).improve(path)
    return path


def onnx(job: Export, kind: str, folder: Path, gptq: bool) -> Path:
    """The same for an ONNX directory."""
    from minigpt_edge.ship.grams import pack_blocks
    from minigpt_edge_export.decoder import read_checkpoint
    from minigpt_edge_export.gguf.quantize import imatrix_from_file
    from minigpt_edge_export.onnx.write import write_onnx
    from minigpt_edge_export.targets import PRECISIONS

    assert job.importance is not None
    packed = pack_blocks(job, kind, PRECISIONS[kind]) if gptq else None
    imatrix, decoder = imatrix_from_file(job.importance), read_checkpoint(job.checkpoint)
    write_onnx(decoder, folder / "onnx", PRECISIONS[kind], imatrix=imatrix, packed=packed)
    return folder / "onnx" / "model.onnx"


MAKERS = {"iq4_nl": gguf, "q4_0": gguf, "int4": onnx, "int4-64": onnx}


def measured(job: Export, model: Path) -> dict[str, float]:
    """Quality on test, and divergence from the checkpoint."""
    from minigpt_edge_export.verify import verify_logits
    from minigpt_edge_runtime.bench.fresh import run_fresh

    texts = job.text.path / "test.texts.json"
    quality = run_fresh("quality", model, texts=str(texts), threads=job.threads)
    keys = ("bits_per_byte", "stderr", "perplexity_per_base_token")
    kl = verify_logits(model, job.reference(), job.threads).kl_mean
    return {**{key: quality[key] for key in keys}, "kl": kl}


def files(job: Export, kinds: Sequence[str], folder: Path) -> Iterator[tuple[str, str, dict[str, float]]]:
    """(type, how it was rounded, what it is worth and the seconds that making it took) of each file."""
    from minigpt_edge_export.decoder import read_checkpoint
    from minigpt_edge_export.gguf.write import write_gguf

    write_gguf(read_checkpoint(job.checkpoint), folder / "f16.gguf")
    yield "f16", "usual", measured(job, folder / "f16.gguf")
    for kind in kinds:
        for name, gptq in (("usual", False), ("gptq", True)):
            (trial := folder / "trial").mkdir()
            start = time.perf_counter()
            path = MAKERS[kind](job, kind, trial, gptq)
            seconds = round(time.perf_counter() - start, 1)
            yield kind, name, {**measured(job, path), "seconds": seconds}
            shutil.rmtree(trial)


def in_order(checkpoint: Path, importance: Path, out: Path) -> tuple[Path, Path]:
    """A copy of a checkpoint and its importance matrix, in the order that pruning leaves now."""
    from safetensors.torch import load_file, save_file

    from minigpt_edge.models import archs
    from minigpt_edge.models.checkpoint import load_model, read_config, save_model
    from minigpt_edge.prune.context import IMPORTANCE
    from minigpt_edge.prune.order import deal_inputs

    model: Any = load_model(checkpoint)
    entries = deal_inputs(model, archs.load_arch(read_config(checkpoint)), load_file(importance))
    save_model(model, checkpoint, out)
    save_file({name: squares.contiguous() for name, squares in entries.items()}, out / IMPORTANCE)
    return out, out / IMPORTANCE


def main() -> None:
    """Measure one domain's checkpoint, keeping the other rows."""
    from minigpt_edge.stages.parallel import all_cores
    from minigpt_edge_runtime.files import write_json

    parser = argparse.ArgumentParser(description="Four bits, by the formats' quantizers and by GPTQ.")
    parser.add_argument("domain", choices=DOMAINS)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("importance", type=Path)
    parser.add_argument("--deal", action="store_true")
    parser.add_argument("--types", nargs="+", choices=MAKERS, default=list(MAKERS))
    parser.add_argument("--threads", type=int, default=all_cores())
    given = parser.parse_args()
    bench = opened(given.threads, domain=given.domain, dense=False)
    with bench.log, tempfile.TemporaryDirectory() as folder:
        model = given.checkpoint, given.importance
        if given.deal:
            model = in_order(*model, Path(folder) / "dealt")
        job = Export(bench.work, *model, bench.text, {"name": given.domain}, given.threads, bench.log)
        row: dict[str, Any] = {"domain": given.domain, "dealt": given.deal, "threads": given.threads}
        row |= {**provenance(), "files": {}}
        kept = json.loads(RESULT.read_text())["rows"] if RESULT.exists() else []
        kept = [one for one in kept if (one["domain"], one["dealt"]) != (given.domain, given.deal)]
        for kind, how, found in files(job, given.types, Path(folder)):
            row["files"].setdefault(kind, {})[how] = found
            bench.log.line("measured", f"{kind}, {how}: {found['bits_per_byte']:.4f}, KL {found['kl']:.4f}")
            write_json(RESULT, {"model": bench.base.name, "rows": [*kept, row]})


if __name__ == "__main__":
    main()
