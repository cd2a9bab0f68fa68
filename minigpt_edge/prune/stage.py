"""The stage that prunes: the smaller checkpoint, its plan and the importance matrix."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from minigpt_edge.evaluation.stage import CODE as EVALUATE_CODE
from minigpt_edge.evaluation.stage import VALIDATION, evaluate_checkpoint, quality_text
from minigpt_edge.prune.attribution import neurons_quality, vocabulary_quality
from minigpt_edge.prune.context import CHECKPOINT, PruneInputs
from minigpt_edge.prune.methods.registry import get_method
from minigpt_edge.prune.prepare import prepare
from minigpt_edge.prune.result import preview, write_pruned
from minigpt_edge.prune.settings import fitted_settings, given_plan
from minigpt_edge.prune.vocabulary.terms import read_terms
from minigpt_edge.stages import parallel
from minigpt_edge.stages.context import BuildContext
from minigpt_edge.stages.stage import Stage, StageSpec, run_stage
from minigpt_edge_export.targets import parse_target
from minigpt_edge_runtime.files import sha256_file

CODE = ("minigpt_edge.prune", *EVALUATE_CODE)


def plan_only(context: BuildContext, text: Stage) -> dict[str, Any]:
    """What a build would keep of each block and how large its files would be; see `result.preview`."""
    targets = [name for name in context.recipe.targets if parse_target(name).format == "gguf"]
    with context.computing():
        return preview(_inputs(context, text, "plan"), targets)


def _inputs(context: BuildContext, text: Stage, verb: str) -> PruneInputs:
    """What pruning starts from; progress is logged under `verb`."""
    recipe, base, log = context.recipe, context.base, context.log
    return PruneInputs(
        base.path,
        base.fingerprint,
        text.path,
        fitted_settings(recipe, base, log),
        plan=given_plan(recipe),
        terms=read_terms(recipe.keep_tokens) if recipe.keep_tokens else [],
        on_progress=lambda what, done, total: log.step(f"{verb}: {what}", done, total),
        max_memory=recipe.max_memory,
    )


def prune_stage(context: BuildContext, text: Stage) -> Stage:
    """The pruned checkpoint, its plan and the importance matrix."""
    inputs, log = _inputs(context, text, "prune"), context.log
    method = get_method(inputs.settings.method)

    def make(out: Path) -> dict[str, Any]:
        validation = text.path / VALIDATION
        with context.computing(), parallel.own_folder(out) as folder:
            prepared = prepare(inputs, folder)
            log.step("prune: evaluation")
            between = {} if parallel.rank() else vocabulary_quality(prepared, validation)
            pruned = method.pruner(inputs.settings.pattern).apply(prepared)
            log.step("prune: evaluation")
            between |= {} if parallel.rank() else neurons_quality(prepared, pruned, validation)
            metrics = write_pruned(prepared, pruned)
        if parallel.rank():
            return metrics
        del prepared
        quality = evaluate_checkpoint(out / CHECKPOINT, text, context)
        return {**metrics, "between": between, "quality": quality}

    log.step("prune")
    stage = run_stage(
        context.work,
        StageSpec(
            "prune",
            settings={
                **asdict(inputs.settings),
                "terms": inputs.terms,
                **parallel.process_setting(),
                **context.device_setting,
            },
            inputs={
                "model": inputs.fingerprint,
                "corpus": text.digest,
                **({"plan": sha256_file(inputs.plan)} if inputs.plan else {}),
            },
            code=(*CODE, *method.code),
            together=True,
        ),
        make,
    )
    kept = stage.metrics["parameters"]
    what = f"{stage.metrics['sparsity']:.2%} of the parameters removed, {kept['kept'] / 1e6:.1f} M kept; "
    if "zeros" in stage.metrics:
        what = (
            f"{stage.metrics['zeros']:.2%} of the blocks' weights are zero, which makes no file smaller and "
            "no CPU faster; "
        )
    if stage.metrics.get("reductions") is not None:
        what = (
            f"low rank in {len(stage.metrics['reductions'].split(','))} matrices: ONNX files keep two small "
            f"matrices for each ({stage.metrics['spared_where_factors_run'] / 1e6:.1f} M parameters fewer), "
            "GGUF files their product; "
        )
    log.finished("prune", what + quality_text(stage.metrics["quality"]), stage)
    return stage
