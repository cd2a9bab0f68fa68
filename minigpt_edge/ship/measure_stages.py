"""Speed, memory and quality of exported files, each measured in a process of its own that has no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt_edge.ship.export_stages import CODE as EXPORT_CODE
from minigpt_edge.ship.export_stages import model_path
from minigpt_edge.stages.stage import Stage, StageSpec, run_stage
from minigpt_edge_export.targets import PRECISIONS, Target

if TYPE_CHECKING:
    from minigpt_edge.models.base_model import BaseModel
    from minigpt_edge.stages.console import Log

CODE = (
    *("minigpt_edge.ship", "minigpt_edge_export.targets"),
    *(f"minigpt_edge_runtime.{name}" for name in ("_version", "bench", "engines", "formats", "scoring")),
)


def measure(model: Path, texts: Path, threads: int, log: Log, what: str) -> dict[str, Any]:
    """Speed, memory and quality of a model file, each in a process of its own that has no torch."""
    from minigpt_edge_runtime.bench.fresh import run_fresh

    log.step(f"measure: {what}, speed")
    speed = run_fresh("speed", model, threads=threads)
    log.step(f"measure: {what}, quality")
    quality = run_fresh("quality", model, texts=str(texts), threads=threads)
    return {"speed": speed, "quality": quality}


def measure_stage(work: Path, target: Target, made: Stage, text: Stage, threads: int, log: Log) -> Stage:
    """`measure` of a target's file on the test windows."""
    model, what = model_path(target, made), f"shipped {label(target.format, made.metrics['type'])}"
    what += " mixed" * bool(made.metrics["mix"])
    stage = run_stage(
        work,
        StageSpec(
            f"measure-{target.name}",
            settings={"threads": threads},
            inputs={"model": made.digest, "test": text.manifest["outputs"]["test.texts.json"]},
            code=CODE,
        ),
        make=lambda out: measure(model, text.path / "test.texts.json", threads, log, what),
    )
    _say_measured(stage, what, log)
    return stage


def _say_measured(stage: Stage, what: str, log: Log) -> None:
    speed, quality = stage.metrics["speed"], stage.metrics["quality"]
    log.line(
        "measure",
        f"{what}: {quality['bits_per_byte']:.4f} bits per byte on test, "
        f"{speed['decode_tokens_per_second']:.0f} tokens/s, {speed['peak_rss_mb']:.0f} MB",
        stage.manifest["seconds"],
        cached=stage.cached,
    )


def label(file_format: str, kind: str) -> str:
    """What people read: "IQ4_NL" of a GGUF file, "ONNX INT4" of the other."""
    return kind.upper() if file_format == "gguf" else f"ONNX {kind.upper()}"


def baseline_stage(
    work: Path, base: BaseModel, file_format: str, kind: str, text: Stage, threads: int, log: Log
) -> Stage:
    """The dense model in a format and type, quantized the usual way (without importance matrix), measured."""
    what = f"dense {label(file_format, kind)}"

    def make(out: Path) -> dict[str, Any]:
        log.step(f"measure: {what}, export")
        export = _dense_onnx if file_format == "onnx" else _dense_gguf
        model = export(base, kind, threads, out)
        result = measure(model, text.path / "test.texts.json", threads, log, what)
        for path in sorted(out.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        return result

    stage = run_stage(
        work,
        StageSpec(
            f"baseline-{file_format}-{kind}",
            settings={"format": file_format, "type": kind, "threads": threads},
            inputs={"model": base.fingerprint, "test": text.manifest["outputs"]["test.texts.json"]},
            code=EXPORT_CODE,
        ),
        make,
    )
    _say_measured(stage, what, log)
    return stage


def _dense_gguf(base: BaseModel, kind: str, threads: int, out: Path) -> Path:
    from minigpt_edge_export.decoder import read_checkpoint
    from minigpt_edge_export.gguf.quantize import quantize
    from minigpt_edge_export.gguf.write import write_gguf
    from minigpt_edge_export.targets import UNQUANTIZED

    plain = out / "plain.gguf"
    write_gguf(read_checkpoint(base.path), plain, file_type=kind if kind in UNQUANTIZED else "f16")
    if kind in UNQUANTIZED:
        return plain
    quantize(plain, out / "quantized.gguf", kind, threads=threads)
    plain.unlink()
    return out / "quantized.gguf"


def _dense_onnx(base: BaseModel, kind: str, _threads: int, out: Path) -> Path:
    from minigpt_edge_export.decoder import read_checkpoint
    from minigpt_edge_export.onnx.write import write_onnx

    write_onnx(read_checkpoint(base.path), out / "onnx", PRECISIONS[kind])
    return out / "onnx" / "model.onnx"
