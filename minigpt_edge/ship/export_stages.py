"""From a checkpoint to files for the targets, each proven against the checkpoint before it counts."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minigpt_edge.ship.job import F16, Export
from minigpt_edge.ship.reference import CODE as REFERENCE_CODE
from minigpt_edge.ship.reference import checkpoint_hashes
from minigpt_edge.stages.device import device_setting
from minigpt_edge.stages.stage import Stage, StageSpec, run_stage
from minigpt_edge_export.targets import PRECISIONS, Target
from minigpt_edge_runtime.files import sha256_file

CODE = (
    *REFERENCE_CODE,
    *(f"minigpt_edge.prune.{name}" for name in ("backward", "context", "moments", "weighted")),
    *("minigpt_edge_runtime.bench", "minigpt_edge_runtime._version"),
)


def model_path(target: Target, made: Stage) -> Path:
    """The model file that a target's stage made."""
    return made.path / ("onnx/model.onnx" if target.format == "onnx" else "model.gguf")


def f16_stage(job: Export) -> Stage:
    """The F16 GGUF file, proven against the checkpoint: logits, token ids, round trip."""
    from minigpt_edge_export.decoder import read_checkpoint
    from minigpt_edge_export.gguf.layout import layout_of
    from minigpt_edge_export.gguf.write import write_gguf

    def make(out: Path) -> dict[str, Any]:
        job.log.step("export: GGUF F16")
        decoder = read_checkpoint(job.checkpoint)
        write_gguf(decoder, out / F16, metadata=job.metadata)
        job.log.step("export: parity")
        return {
            "architecture": layout_of(decoder).name,
            "parameters": decoder.parameters,
            **job.check(out / F16, "f16", out, tokens=True),
        }

    stage = run_stage(
        job.work,
        StageSpec(
            "export",
            settings={"metadata": job.metadata},
            inputs={**checkpoint_hashes(job.checkpoint), "corpus": job.text.digest},
            code=CODE,
        ),
        make,
    )
    line = f"GGUF F16 ({stage.metrics['architecture']}), {_agreement(stage.metrics)}"
    job.log.finished("export", line, stage)
    return stage


def gguf_stage(job: Export, target: Target, f16: Stage) -> Stage:
    """The GGUF file of a target; a family's types, and a mix of types, compete on validation text.

    Its metrics name the "type". Of a mix that is the best single type of the family, and "mix" has the types
    of all matrices as `quantize` takes them; it is empty otherwise.

    Raises:
        EdgeError: no file of the target is as small as `job.max_bytes`.
    """
    from minigpt_edge.ship.choose_type import Choice, check_size, choose, wanted_types
    from minigpt_edge.ship.grams import round_matrices
    from minigpt_edge_export.gguf.quantize import imatrix_from_file, quantize
    from minigpt_edge_runtime.formats.gguf_header import read_header

    source = f16.path / F16

    def make(out: Path) -> dict[str, Any]:
        model, choice = out / "model.gguf", Choice(target.types[0], {}, {})
        if not target.quantized:
            _unquantized(choice.type, source, job.checkpoint, model)
        else:
            imatrix = imatrix_from_file(job.importance) if job.importance else None
            if target.exact:
                quantize(source, model, choice.type, imatrix=imatrix, threads=job.threads)
                wanted = wanted_types(job.checkpoint, target.types, imatrix=bool(imatrix))
                round_matrices(job, target.name, wanted).improve(model)
            else:
                choice = choose(job, target, source, model, imatrix)
        check_size(job, target, model.stat().st_size)
        parity = job.check(model, choice.type, out, tokens=False)
        return {**choice._asdict(), "tensor_types": read_header(model).types(), "parity": parity}

    inputs = {
        **checkpoint_hashes(job.checkpoint),
        "f16": f16.manifest["outputs"][F16],
        "corpus": job.text.digest,
    }
    return _target_stage(job, target, inputs, make)


def onnx_stage(job: Export, target: Target) -> Stage:
    """The ONNX directory of a target, proven as GGUF files are."""
    from minigpt_edge.ship.choose_type import Choice
    from minigpt_edge.ship.grams import pack_blocks
    from minigpt_edge_export.decoder import read_checkpoint
    from minigpt_edge_export.gguf.quantize import imatrix_from_file
    from minigpt_edge_export.onnx.write import write_onnx
    from minigpt_edge_runtime.formats.onnx_header import read_onnx

    def make(out: Path) -> dict[str, Any]:
        decoder = read_checkpoint(job.checkpoint)
        imatrix = imatrix_from_file(job.importance) if job.importance and target.quantized else None
        kind = target.types[0]
        # at 8 bits rounding loses too little to be worth the pass
        packed = pack_blocks(job, target.name, PRECISIONS[kind]) if PRECISIONS[kind].bits == 4 else None
        job.log.step(f"export: ONNX {kind}")
        model = out / "onnx" / "model.onnx"
        write_onnx(
            decoder, model.parent, PRECISIONS[kind], imatrix=imatrix, packed=packed, metadata=job.metadata
        )
        job.log.step(f"{target.name}: parity")
        parity = job.check(model, kind, out, tokens=True)
        return {**Choice(kind, {}, {})._asdict(), "tensor_types": read_onnx(model).types(), "parity": parity}

    inputs = {**checkpoint_hashes(job.checkpoint), "corpus": job.text.digest}
    return _target_stage(job, target, inputs, make)


def _target_stage(
    job: Export, target: Target, inputs: dict[str, str], make: Callable[[Path], dict[str, Any]]
) -> Stage:
    """Run the stage of a target's file and log its type, size, parity and what was tried."""
    stage = run_stage(
        job.work,
        StageSpec(
            f"export-{target.name}",
            settings={
                "target": target.name,
                "types": target.types,
                "metadata": job.metadata,
                "max_bytes": job.max_bytes if target.format == "gguf" else None,
                "threads": job.threads,
                **device_setting(job.device),
            },
            inputs={
                **inputs,
                "imatrix": sha256_file(job.importance) if job.importance else "",
                "validation": job.text.manifest["outputs"]["validation.texts.json"],
            },
            code=CODE,
        ),
        make,
    )
    metrics = stage.metrics
    size = sum(record["bytes"] for record in metrics["tensor_types"].values())
    mixed = " mixed" * bool(metrics["mix"])
    line = f"{target.name} is {metrics['type'].upper()}{mixed}, {size / 1e6:.1f} MB of weights, "
    line += _agreement(metrics["parity"])
    if metrics["tried"]:
        line += "; bits per byte on validation: " + ", ".join(
            f"{name} {trial['bytes'] / 1e6:.1f} MB {trial['bits_per_byte']:.4f}"
            for name, trial in metrics["tried"].items()
        )
    job.log.finished("export", line, stage)
    return stage


def _agreement(parity: dict[str, Any]) -> str:
    """How near a file is to the checkpoint, in words."""
    text = (
        f"KL to the checkpoint {parity['kl_mean']:.1e}, argmax agreement {parity['argmax_agreement']:.1%}, "
        f"bits per byte x {parity['bits_ratio']:.3f}"
    )
    return text + (f", all token ids of {parity['texts']:,} texts equal" if "texts" in parity else "")


def _unquantized(kind: str, f16: Path, checkpoint: Path, model: Path) -> None:
    """Write a file of 16 or 32 bits a weight: the F16 file itself, or another from the checkpoint."""
    from minigpt_edge_export.decoder import read_checkpoint
    from minigpt_edge_export.gguf.write import write_gguf

    if kind == "f16":
        shutil.copyfile(f16, model)
    else:
        write_gguf(read_checkpoint(checkpoint), model, file_type=kind)
