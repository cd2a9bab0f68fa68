"""From a checkpoint to files for the targets, each proven against the checkpoint before it counts."""

from __future__ import annotations

import dataclasses
import math
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt_edge.reference import REFERENCE, checkpoint_hashes, reference_stage
from minigpt_edge.stage import Stage, run_stage
from minigpt_edge_export.targets import PRECISIONS, Target
from minigpt_edge_runtime.files import read_json, sha256_file, write_json

if TYPE_CHECKING:
    from minigpt_edge.console import Talk

F16 = "model-f16.gguf"
CALIBRATION_TOKENS, CALIBRATION_WINDOW = 16_384, 512  # of GPTQ
CHOICE_WINDOWS = 12  # validation windows on which the types of a family are compared
# Loss falls with parameters to the power -0.076 (Kaplan et al. 2020, arXiv 2001.08361, eq. 1.1):
# what a byte is worth when two types differ in size and quality.
SCALING_EXPONENT = 0.076
_VERIFY_CODE = (
    *(f"minigpt_edge_export.{name}" for name in ("spec", "verify", "scripts")),
    *(f"minigpt_edge_runtime.{name}" for name in ("engine", "scoring")),
)
GGUF_CODE = (
    *(f"minigpt_edge_export.{name}" for name in ("gguf", "pretokenizers", "tokenizer")),
    *_VERIFY_CODE,
    "minigpt_edge_runtime.gguf",
)
QUANTIZE_CODE = ("minigpt_edge_export.quantize", "minigpt_edge_export.targets", *_VERIFY_CODE)
ONNX_CODE = (
    *(
        f"minigpt_edge_export.{name}"
        for name in ("genai", "gptq", "onnx", "onnx_graph", "onnx_grams", "onnx_weights", "targets")
    ),
    *_VERIFY_CODE,
    "minigpt_edge_runtime.onnx",
    "minigpt_edge_runtime.text",
)


@dataclass(frozen=True)
class Export:
    """What all targets of a build have in common.

    Attributes:
        work: where stages are kept.
        checkpoint: the Hugging Face directory to export.
        importance: imatrix.safetensors, or None.
        text: the corpus stage: held-out texts for parity and choice.
        metadata: what a file says about itself: name, base_model, license.
    """

    work: Path
    checkpoint: Path
    importance: Path | None
    text: Stage
    metadata: dict[str, str]
    threads: int
    talk: Talk

    def reference(self) -> Path:
        """The checkpoint's logits, computed once."""
        made = reference_stage(self.work, self.checkpoint, self.text, self.threads, self.talk)
        return made.path / REFERENCE

    def held_out(self) -> list[str]:
        """All validation and test texts."""
        from minigpt_edge.corpus import read_split

        return read_split(self.text.path, "validation") + read_split(self.text.path, "test")

    def check(self, model: Path, kind: str, out: Path, *, tokens: bool) -> dict[str, Any]:
        """The parity gate; its figures go to `out`/parity.json, and to the work directory if it fails."""
        from minigpt_edge_export.verify import check

        evidence = self.work / "parity-failure.json"
        logits, token_parity = check(
            model,
            kind=kind,
            reference=self.reference(),
            evidence=evidence,
            threads=self.threads,
            tokenizer_json=self.checkpoint / "tokenizer.json" if tokens else None,
            texts=self.held_out() if tokens else (),
        )
        evidence.replace(out / "parity.json")
        figures = dataclasses.asdict(logits)
        return figures | ({"texts": token_parity.texts} if token_parity else {})


def calibration_sequences(checkpoint: Path, corpus: Path) -> list[list[int]]:
    """CALIBRATION_TOKENS of a corpus stage's training text as token ids, a stretch a document."""
    from minigpt_edge.corpus import read_split
    from minigpt_edge.evaluate.perplexity import encode, read_texts, read_tokenizer

    start, _ = read_texts(corpus / "validation.texts.json")
    rng = random.Random(0)
    documents = read_split(corpus, "train")
    rng.shuffle(documents)
    tokenizer, sequences, left = read_tokenizer(checkpoint), list[list[int]](), CALIBRATION_TOKENS
    for document in documents:
        first, *ids = encode(tokenizer, start, [document])[0]
        at = rng.randrange(max(1, len(ids) - CALIBRATION_WINDOW + 2))
        sequences.append([first, *ids[at : at + CALIBRATION_WINDOW - 1]])
        left -= len(sequences[-1])
        if left <= 0:
            break
    return sequences


def model_path(target: Target, made: Stage) -> Path:
    """The model file that a target's stage made."""
    return made.path / ("onnx/model.onnx" if target.format == "onnx" else "model.gguf")


def f16_stage(job: Export) -> Stage:
    """The F16 GGUF file, proven against the checkpoint: logits, token ids, round trip."""
    from minigpt_edge_export.gguf import write_gguf
    from minigpt_edge_export.spec import read_checkpoint

    def make(out: Path) -> dict[str, Any]:
        job.talk.step("export: GGUF F16")
        decoder = read_checkpoint(job.checkpoint)
        write_gguf(decoder, out / F16, metadata=job.metadata)
        job.talk.step("export: parity")
        return {
            "architecture": "llama" if decoder.uniform else "deci",
            "parameters": decoder.parameters,
            **job.check(out / F16, "f16", out, tokens=True),
        }

    stage = run_stage(
        job.work,
        "export",
        settings={"metadata": job.metadata},
        inputs={**checkpoint_hashes(job.checkpoint), "corpus": job.text.digest},
        code=GGUF_CODE,
        make=make,
    )
    metrics = stage.metrics
    job.talk.line(
        "export",
        f"GGUF F16 ({metrics['architecture']}), {_agreement(metrics)}",
        stage.manifest["seconds"],
        reused=stage.reused,
    )
    return stage


def gguf_stage(job: Export, target: Target, f16: Stage) -> Stage:
    """The GGUF file of a target; among a family's types the one of best validation quality per byte."""
    from minigpt_edge_export.quantize import imatrix_from_file, quantize, tensor_types
    from minigpt_edge_export.spec import read_checkpoint
    from minigpt_edge_export.targets import candidates

    source = f16.path / F16

    def make(out: Path) -> dict[str, Any]:
        model = out / "model.gguf"
        if not target.quantized:
            kind, tried = target.types[0], dict[str, dict[str, float]]()
            _unquantized(kind, source, job.checkpoint, model)
        else:
            imatrix = imatrix_from_file(job.importance) if job.importance else None
            names = candidates(target, read_checkpoint(job.checkpoint), imatrix=imatrix is not None)

            def write(name: str) -> Path:
                quantize(source, out / f"{name}.gguf", name, imatrix=imatrix, threads=job.threads)
                return out / f"{name}.gguf"

            kind, tried = _best(job, target, names, out, write)
            (out / f"{kind}.gguf").rename(model)
            for path in out.glob("*.gguf"):
                if path != model:
                    path.unlink()
        parity = job.check(model, kind, out, tokens=False)
        return {"type": kind, "tried": tried, "tensor_types": tensor_types(model), "parity": parity}

    return _target_stage(job, target, QUANTIZE_CODE, {"f16": f16.manifest["outputs"][F16]}, make)


def onnx_stage(job: Export, target: Target) -> Stage:
    """The ONNX directory of a target, proven as GGUF files are."""
    from minigpt_edge_export.onnx import write_onnx
    from minigpt_edge_export.onnx_grams import collect_grams
    from minigpt_edge_export.quantize import imatrix_from_file
    from minigpt_edge_export.spec import read_checkpoint
    from minigpt_edge_runtime.onnx_header import read_onnx

    def make(out: Path) -> dict[str, Any]:
        decoder = read_checkpoint(job.checkpoint)
        imatrix = imatrix_from_file(job.importance) if job.importance and target.quantized else None
        kind, grams = target.types[0], None
        if PRECISIONS[kind].bits == 4:  # at 8 bits rounding loses too little to be worth the pass
            step = partial(job.talk.step, f"{target.name}: calibration")
            sequences = calibration_sequences(job.checkpoint, job.text.path)
            grams = collect_grams(decoder, sequences, out, job.threads, step)
        job.talk.step(f"export: ONNX {kind}")
        model = out / "onnx" / "model.onnx"
        write_onnx(
            decoder, model.parent, PRECISIONS[kind], imatrix=imatrix, grams=grams, metadata=job.metadata
        )
        job.talk.step(f"{target.name}: parity")
        parity = job.check(model, kind, out, tokens=True)
        return {"type": kind, "tried": {}, "tensor_types": read_onnx(model).types(), "parity": parity}

    inputs = {**checkpoint_hashes(job.checkpoint), "corpus": job.text.digest}
    return _target_stage(job, target, ONNX_CODE, inputs, make)


def _target_stage(
    job: Export,
    target: Target,
    code: Sequence[str],
    inputs: dict[str, str],
    make: Callable[[Path], dict[str, Any]],
) -> Stage:
    stage = run_stage(
        job.work,
        f"export-{target.name}",
        settings={
            "target": target.name,
            "types": target.types,
            "choice_windows": CHOICE_WINDOWS,
            "calibration": (CALIBRATION_TOKENS, CALIBRATION_WINDOW),
            "metadata": job.metadata,
            "threads": job.threads,
        },
        inputs={
            **inputs,
            "imatrix": sha256_file(job.importance) if job.importance else "",
            "validation": job.text.manifest["outputs"]["validation.texts.json"],
        },
        code=code,
        make=make,
    )
    metrics = stage.metrics
    size = sum(record["bytes"] for record in metrics["tensor_types"].values())
    line = f"{target.name} is {metrics['type'].upper()}, {size / 1e6:.1f} MB of weights, "
    line += _agreement(metrics["parity"])
    if metrics["tried"]:
        line += "; bits per byte on validation: " + ", ".join(
            f"{name} {trial['bytes'] / 1e6:.1f} MB {trial['bits_per_byte']:.4f}"
            for name, trial in metrics["tried"].items()
        )
    job.talk.line("export", line, stage.manifest["seconds"], reused=stage.reused)
    return stage


def _agreement(parity: dict[str, Any]) -> str:
    text = (
        f"KL to the checkpoint {parity['kl_mean']:.1e}, {parity['argmax_agreement']:.1%} of arg-max agree, "
        f"bits per byte x {parity['bits_ratio']:.3f}"
    )
    return text + (f", all token ids of {parity['texts']:,} texts" if "texts" in parity else "")


def _unquantized(kind: str, f16: Path, checkpoint: Path, model: Path) -> None:
    from minigpt_edge_export.gguf import write_gguf
    from minigpt_edge_export.spec import read_checkpoint

    if kind == "f16":
        shutil.copyfile(f16, model)
    else:
        write_gguf(read_checkpoint(checkpoint), model, file_type=kind)


def _best(
    job: Export, target: Target, names: Sequence[str], out: Path, write: Callable[[str], Path]
) -> tuple[str, dict[str, dict[str, float]]]:
    """Write all candidates; the name of the best, and what each scored if there was a choice."""
    tried: dict[str, dict[str, float]] = {}
    texts = out / "texts.json"
    content = read_json(job.text.path / "validation.texts.json")
    write_json(texts, {**content, "windows": content["windows"][:CHOICE_WINDOWS]})
    for index, name in enumerate(names):
        job.talk.step(f"{target.name}: {name}", index, len(names))
        model = write(name)
        if len(names) > 1:
            tried[name] = _trial(model, texts, job.threads)
    texts.unlink()
    return (min(tried, key=lambda name: tried[name]["score"]) if tried else names[0]), tried


def _trial(model: Path, texts: Path, threads: int) -> dict[str, float]:
    """Size, quality and their balance: log bits per byte + SCALING_EXPONENT x log bytes, lower is better."""
    from minigpt_edge_runtime.artefact import describe_model
    from minigpt_edge_runtime.measure import run_fresh

    bits = run_fresh("quality", model, texts=str(texts), threads=threads)["bits_per_byte"]
    size = describe_model(model)["bytes"]
    return {"bytes": size, "bits_per_byte": bits, "score": math.log(bits) + SCALING_EXPONENT * math.log(size)}
