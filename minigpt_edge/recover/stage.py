"""The stage that recovers: the pruned checkpoint, fine-tuned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minigpt_edge.evaluation.stage import CODE as EVALUATE_CODE
from minigpt_edge.evaluation.stage import quality_text
from minigpt_edge.prune.context import CHECKPOINT, DENSE_STATES, PLAN
from minigpt_edge.prune.settings import WINDOW
from minigpt_edge.recover.memory import Recovery
from minigpt_edge.stages.context import BuildContext
from minigpt_edge.stages.parallel import process_setting
from minigpt_edge.stages.stage import Stage, StageSpec, run_stage

CODE = ("minigpt_edge.recover", "minigpt_edge.prune", *EVALUATE_CODE)


def recover_stage(context: BuildContext, text: Stage, dense: Stage, pruned: Stage) -> Stage | None:
    """The fine-tuned checkpoint; None if the recipe does without."""
    from minigpt_edge.recover.config import LORA_STEP_TOKENS, STEP_TOKENS

    recipe, base = context.recipe, context.base
    if recipe.recover == "no":
        return None
    until = dense.metrics["perplexity_per_base_token"] if recipe.recover == "dense" else None
    room = Recovery(pruned.path / CHECKPOINT, recipe.lora_rank is not None, recipe.max_memory)
    most = LORA_STEP_TOKENS if recipe.lora_rank else STEP_TOKENS
    micro = room.micro_tokens(most, min(WINDOW, base.context))

    def make(out: Path) -> dict[str, Any]:
        room.check(micro)
        return _recover(out, context, text, pruned, until, micro)

    context.log.step("recover")
    stage = run_stage(
        context.work,
        StageSpec(
            "recover",
            settings={
                "tokens": recipe.recover_tokens,
                "distill": recipe.distill,
                **({"taught": _taught(context)} if recipe.distill else {}),
                "lora_rank": recipe.lora_rank,
                "until_perplexity": until,
                "seed": recipe.seed,
                "threads": recipe.threads,
                **({"micro_tokens": micro} if micro < most else {}),
                **process_setting(),
            },
            inputs={
                "pruned": pruned.digest,
                "corpus": text.digest,
                **({"teacher": base.fingerprint} if recipe.distill else {}),
            },
            code=CODE,
            resumable=True,
            together=True,
        ),
        make,
    )
    metrics = stage.metrics
    speed = f"{metrics['tokens']:,} tokens at {metrics['tokens_per_second']:,.0f} tokens/s; "
    context.log.finished("recover", speed + quality_text(metrics["after"]), stage)
    return stage


def _taught(context: BuildContext) -> int:
    """How many windows the dense model teaches: the calibration set, which pruning runs it on."""
    return context.recipe.calibration_tokens // min(WINDOW, context.base.context)


def _recover(
    out: Path, context: BuildContext, text: Stage, pruned: Stage, until: float | None, micro: int
) -> dict[str, Any]:
    from minigpt_edge.prune.plan import read_plan
    from minigpt_edge.recover.config import RecoverConfig, TrainingTexts
    from minigpt_edge.recover.recover import recover
    from minigpt_edge.recover.teacher import Teacher

    recipe, base, teacher = context.recipe, context.base, None
    if recipe.distill:
        states, tokens = pruned.path / DENSE_STATES, read_plan(pruned.path / PLAN).tokens
        known = states if states.is_file() else None
        teacher = Teacher(base.path, tokens, recipe.distill, _taught(context), known)
    return recover(
        pruned.path / CHECKPOINT,
        out,
        TrainingTexts.of(text.path),
        RecoverConfig(
            tokens=recipe.recover_tokens,
            sequence_length=min(WINDOW, base.context),
            teacher=teacher,
            lora_rank=recipe.lora_rank,
            micro_tokens=micro,
            seed=recipe.seed,
            threads=recipe.threads,
            until_perplexity=until,
        ),
        before=pruned.metrics["quality"],
        on_progress=context.log.recovery,
    )
