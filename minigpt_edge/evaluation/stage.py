"""The stage of the dense model: its quality on the validation windows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minigpt_edge.stages.context import BuildContext
from minigpt_edge.stages.stage import Stage, StageSpec, run_stage

VALIDATION = "validation.texts.json"
CODE = (
    *("minigpt_edge.evaluation", "minigpt_edge.data", "minigpt_edge.models", "minigpt_edge_export"),
    *(f"minigpt_edge_runtime.{name}" for name in ("engines", "formats", "generate", "scoring")),
)


def dense_stage(context: BuildContext, text: Stage) -> Stage:
    """The dense checkpoint's quality on the validation windows."""
    base, threads = context.base, context.recipe.threads
    context.log.step("dense model")
    stage = run_stage(
        context.work,
        StageSpec(
            "dense",
            settings={"threads": threads, **context.device_setting},
            inputs={
                "model": base.fingerprint,
                "validation": text.manifest["outputs"][VALIDATION],
            },
            code=CODE,
        ),
        make=lambda out: evaluate_checkpoint(base.path, text, context),
    )
    context.log.finished("dense", quality_text(stage.metrics), stage)
    return stage


def evaluate_checkpoint(checkpoint: Path, text: Stage, context: BuildContext) -> dict[str, Any]:
    """A checkpoint's quality on the validation windows."""
    import torch

    from minigpt_edge.evaluation.perplexity import evaluate

    torch.set_num_threads(context.recipe.threads)
    torch.set_flush_denormal(True)
    with context.computing():
        return evaluate(checkpoint, text.path / VALIDATION)


def quality_text(quality: dict[str, Any]) -> str:
    return (
        f"{quality['bits_per_byte']:.4f} bits per byte, perplexity "
        f"{quality['perplexity_per_base_token']:.2f} on validation"
    )
