"""Speed, memory and quality of exported files, each measured in a process of its own that has no torch.

The peak memory is measured there too: by `minigpt_edge_runtime.bench.memory`, in the process that decodes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt_edge.ship.export_stages import CODE as EXPORT_CODE
from minigpt_edge.ship.export_stages import model_path
from minigpt_edge.ship.job import Export
from minigpt_edge.stages.stage import Stage, StageSpec, run_stage
from minigpt_edge_export.targets import PRECISIONS, Target

if TYPE_CHECKING:
    from minigpt_edge.models.base_model import BaseModel

CODE = (
    *("minigpt_edge.ship", "minigpt_edge_export.targets"),
    *(f"minigpt_edge_runtime.{name}" for name in ("_version", "bench", "engines", "formats", "scoring")),
)


def label(file_format: str, kind: str) -> str:
    """What people read: "IQ4_NL" of a GGUF file, "ONNX INT4" of the other."""
    return kind.upper() if file_format == "gguf" else f"ONNX {kind.upper()}"


def shipped_label(target: Target, made: Stage) -> str:
    """The same of the file that a target's stage made; "IQ4_NL mixed" where its matrices differ in type."""
    return label(target.format, made.metrics["type"]) + " mixed" * bool(made.metrics["mix"])


def measure_stage(job: Export, target: Target, made: Stage) -> Stage:
    """The file that a target's stage made, measured on the test windows; its quality on the validation
    windows too, where the model was scored after every other stage."""
    what, model = f"shipped {shipped_label(target, made)}", model_path(target, made)
    texts = {name: job.text.manifest["outputs"][f"{name}.texts.json"] for name in ("test", "validation")}
    spec = StageSpec(
        f"measure-{target.name}",
        settings={"threads": job.threads},
        inputs={"model": made.digest, **texts},
        code=CODE,
    )

    def make(out: Path) -> dict[str, Any]:
        measured = _measure(job, model, what)
        job.log.step(f"measure: {what}, quality on validation")
        return {**measured, "validation": _quality(job, model, "validation")}

    return _run(job, spec, what, make)


def baseline_stage(job: Export, base: BaseModel, file_format: str, kind: str) -> Stage:
    """The dense model in a format and type, quantized the usual way (without importance matrix), measured."""
    what = f"dense {label(file_format, kind)}"

    def make(out: Path) -> dict[str, Any]:
        job.log.step(f"measure: {what}, export")
        if file_format == "onnx":
            model = _dense_onnx(base, kind, out)
        else:
            model = _dense_gguf(base, kind, job.threads, out)
        result = _measure(job, model, what)
        for path in sorted(out.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        return result

    spec = StageSpec(
        f"baseline-{file_format}-{kind}",
        settings={"format": file_format, "type": kind, "threads": job.threads},
        inputs={"model": base.fingerprint, "test": job.text.manifest["outputs"]["test.texts.json"]},
        code=EXPORT_CODE,
    )
    return _run(job, spec, what, make)


def _measure(job: Export, model: Path, what: str) -> dict[str, Any]:
    from minigpt_edge_runtime.bench.fresh import run_fresh

    job.log.step(f"measure: {what}, speed")
    speed = run_fresh("speed", model, threads=job.threads)
    job.log.step(f"measure: {what}, quality")
    return {"speed": speed, "quality": _quality(job, model, "test")}


def _quality(job: Export, model: Path, split: str) -> dict[str, Any]:
    """A file's quality on the windows of a split."""
    from minigpt_edge_runtime.bench.fresh import run_fresh

    texts = str(job.text.path / f"{split}.texts.json")
    return run_fresh("quality", model, texts=texts, threads=job.threads)


def _run(job: Export, spec: StageSpec, what: str, make: Callable[[Path], dict[str, Any]]) -> Stage:
    """Run a measuring stage and log its figures."""
    stage = run_stage(job.work, spec, make)
    speed, quality = stage.metrics["speed"], stage.metrics["quality"]
    line = f"{what}: {quality['bits_per_byte']:.4f} bits per byte on test, "
    line += f"{speed['decode_tokens_per_second']:.0f} tokens/s, peak RSS {speed['peak_rss_mb']:.0f} MB"
    job.log.finished("measure", line, stage)
    return stage


def _dense_gguf(base: BaseModel, kind: str, threads: int, out: Path) -> Path:
    from minigpt_edge_export.decoder import read_checkpoint
    from minigpt_edge_export.gguf.quantize import quantize
    from minigpt_edge_export.gguf.rounding import Rounding
    from minigpt_edge_export.gguf.write import write_gguf
    from minigpt_edge_export.targets import UNQUANTIZED

    plain, decoder = out / "plain.gguf", read_checkpoint(base.path)
    write_gguf(decoder, plain, file_type=kind if kind in UNQUANTIZED else "f16")
    if kind in UNQUANTIZED:
        return plain
    quantize(plain, out / "quantized.gguf", kind, threads=threads)
    Rounding(decoder).improve(
        out / "quantized.gguf"
    )  # a base that was trained for this type keeps what it has
    plain.unlink()
    return out / "quantized.gguf"


def _dense_onnx(base: BaseModel, kind: str, out: Path) -> Path:
    from minigpt_edge_export.decoder import read_checkpoint
    from minigpt_edge_export.onnx.write import write_onnx

    write_onnx(read_checkpoint(base.path), out / "onnx", PRECISIONS[kind])
    return out / "onnx" / "model.onnx"
