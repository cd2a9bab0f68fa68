"""The stages that recover: the pruned checkpoint, fine-tuned for what each target stores."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt_edge.evaluation.stage import CODE as EVALUATE_CODE
from minigpt_edge.evaluation.stage import quality_text
from minigpt_edge.models.dense_states import DENSE_STATES
from minigpt_edge.prune.context import CHECKPOINT, IMPORTANCE, PLAN
from minigpt_edge.prune.methods.registry import pruner_of
from minigpt_edge.prune.settings import WINDOW, prune_settings
from minigpt_edge.recover.memory import Recovery
from minigpt_edge.stages import parallel
from minigpt_edge.stages.context import BuildContext
from minigpt_edge.stages.stage import Stage, StageSpec, code_hash, run_stage
from minigpt_edge_export.decoder import read_checkpoint
from minigpt_edge_export.gguf.grids import GRIDS
from minigpt_edge_export.gguf.quantize import matrices_in
from minigpt_edge_export.targets import Target
from minigpt_edge_runtime.files import sha256_json

if TYPE_CHECKING:
    from minigpt_edge.recipe import Recipe
    from minigpt_edge.recover.config import Progress, RecoverConfig

CODE = (
    *("minigpt_edge.recover", "minigpt_edge.prune", "minigpt_edge_export.gguf.grids"),
    *EVALUATE_CODE,
)

SHARED = 0.5  # of the steps, where recoveries differ in the grid


@dataclass(frozen=True)
class RecoveryJob:
    """The recovery that a build asks for.

    Attributes:
        until: perplexity per base token to stop at.
        room: what decides its memory.
        micro: tokens of one forward and backward pass.
        kind: the type whose grid is trained on, None for float32.
        shared: whether recoveries of other kinds have the same first steps, in float32.
        keep_zeros: whether they are a mask's.
    """

    context: BuildContext
    text: Stage
    pruned: Stage
    until: float | None
    room: Recovery
    micro: int
    kind: str | None = None
    shared: bool = False
    keep_zeros: bool = False

    @classmethod
    def of(
        cls,
        context: BuildContext,
        text: Stage,
        dense: Stage,
        pruned: Stage,
        kind: str | None = None,
        shared: bool = False,
    ) -> RecoveryJob:
        """That of a recipe which does not do without."""
        recipe, base = context.recipe, context.base
        until = dense.metrics["perplexity_per_base_token"] if recipe.recover == "dense" else None
        rounded = kind is not None
        room = Recovery(pruned.path / CHECKPOINT, recipe.lora_rank is not None, recipe.max_memory, rounded)
        micro = room.micro_tokens(_most(recipe), min(WINDOW, base.context))
        masks = pruner_of(prune_settings(recipe)).masks
        return cls(context, text, pruned, until, room, micro, kind, shared, masks)

    @property
    def plain_share(self) -> float:
        """Of the steps, those before the grid."""
        return SHARED if self.shared else 0.0

    @property
    def taught(self) -> int:
        """How many windows the dense model teaches: the calibration set, which pruning runs it on."""
        return self.context.recipe.calibration_tokens // min(WINDOW, self.context.base.context)

    def spec(self) -> StageSpec:
        """Its stage."""
        recipe, base = self.context.recipe, self.context.base
        return StageSpec(
            "recover",
            settings={
                "tokens": recipe.recover_tokens,
                "distill": recipe.distill,
                **({"taught": self.taught} if recipe.distill else {}),
                "lora_rank": recipe.lora_rank,
                "until_perplexity": self.until,
                "seed": recipe.seed,
                "threads": recipe.threads,
                **({"micro_tokens": self.micro} if self.micro < _most(recipe) else {}),
                **({"keep_zeros": True} if self.keep_zeros else {}),
                **({"grid": [self.kind, self.plain_share]} if self.kind else {}),
                **parallel.process_setting(),
                **self.context.device_setting,
            },
            inputs={
                "pruned": self.pruned.digest,
                "corpus": self.text.digest,
                **({"teacher": base.fingerprint} if recipe.distill else {}),
            },
            code=CODE,
            resumable=True,
            together=True,
        )

    def config(self) -> RecoverConfig:
        """How the model is fine-tuned."""
        from minigpt_edge.prune.plan import read_plan
        from minigpt_edge.recover.config import FileGrid, RecoverConfig
        from minigpt_edge.recover.teacher import Teacher

        recipe, base, teacher = self.context.recipe, self.context.base, None
        if recipe.distill:
            states, tokens = self.pruned.path / DENSE_STATES, read_plan(self.pruned.path / PLAN).tokens
            known = states if states.is_file() else None
            teacher = Teacher(base.path, tokens, recipe.distill, self.taught, known)
        return RecoverConfig(
            tokens=recipe.recover_tokens,
            sequence_length=min(WINDOW, base.context),
            teacher=teacher,
            grid=FileGrid(self.kind, self.pruned.path / IMPORTANCE) if self.kind else None,
            plain_share=self.plain_share,
            fork=self.fork if self.shared else None,
            keep_zeros=self.keep_zeros,
            lora_rank=recipe.lora_rank,
            micro_tokens=self.micro,
            seed=recipe.seed,
            threads=recipe.threads,
            until_perplexity=self.until,
        )

    def run(self, out: Path, config: RecoverConfig, on_progress: Progress) -> dict[str, Any]:
        """Recover into `out`; EdgeError as `recover.recover`, or it takes more memory than there is."""
        from minigpt_edge.recover.config import TrainingTexts
        from minigpt_edge.recover.recover import recover

        with self.context.computing():
            self.room.check(self.micro)
            return recover(
                self.pruned.path / CHECKPOINT,
                out,
                TrainingTexts.of(self.text.path),
                config,
                before=self.pruned.metrics["quality"],
                on_progress=on_progress,
            )

    @property
    def fork(self) -> Path:
        """Where the training checkpoint lies that recoveries with other grids go on from."""
        spec = replace(self, kind=None).spec()
        key = sha256_json([spec.settings, spec.inputs, code_hash(spec.code)])
        return self.context.work / f"fork-{key[:16]}"


def _most(recipe: Recipe) -> int:
    """Tokens of one forward and backward pass where memory does not limit them: those of a step."""
    from minigpt_edge.recover.config import LORA_STEP_TOKENS, STEP_TOKENS

    return LORA_STEP_TOKENS if recipe.lora_rank else STEP_TOKENS


def recover_stage(
    context: BuildContext, text: Stage, dense: Stage, pruned: Stage, kind: str | None = None
) -> Stage:
    """The checkpoint fine-tuned in float32, or on a type's grid."""
    return _run(RecoveryJob.of(context, text, dense, pruned, kind))


def recover_targets(
    context: BuildContext, targets: Sequence[Target], text: Stage, dense: Stage, pruned: Stage
) -> dict[str, Stage]:
    """The fine-tuned checkpoint of each target, by name; empty if the recipe does without recovery.

    Targets whose files have one grid share it; where grids differ, all share their first steps in float32.
    """
    if context.recipe.recover == "no":
        return {}
    kinds = {target.name: _grid_of(context, target, pruned.path / CHECKPOINT) for target in targets}
    different = dict.fromkeys(kinds.values())
    jobs = {
        kind: RecoveryJob.of(context, text, dense, pruned, kind, len(different) > 1) for kind in different
    }
    made = {kind: _run(job) for kind, job in jobs.items()}
    for job in jobs.values():
        shutil.rmtree(job.fork, ignore_errors=True)
    return {name: made[kind] for name, kind in kinds.items()}


def wanted_grid(recipe: Recipe, target: Target) -> str | None:
    """The type whose grid is to be trained on for a target; None where it is quantized afterwards."""
    asked = target.needs_training if recipe.qat is None else recipe.qat
    return target.grid if asked and recipe.recover == "tokens" else None


def _grid_of(context: BuildContext, target: Target, checkpoint: Path) -> str | None:
    """The same, None too where training can't do it, which is said."""
    kind, reason = wanted_grid(context.recipe, target), None
    if kind is None:
        return None
    if context.recipe.lora_rank or parallel.wants_shards():
        reason = "adapters and shards are trained in float32"
    elif pruner_of(prune_settings(context.recipe)).masks and 0 not in GRIDS[kind].levels:
        reason = f"{kind} has no level for a mask's zeros"
    elif not matrices_in(read_checkpoint(checkpoint), kind):
        reason = f"no row of this model divides by {kind}'s blocks"
    if reason:
        context.log.line("recover", f"{target.name} is quantized after training, not trained for: {reason}")
    return None if reason else kind


def _run(job: RecoveryJob) -> Stage:
    log = job.context.log
    log.step("recover")
    stage = run_stage(job.context.work, job.spec(), lambda out: job.run(out, job.config(), log.recovery))
    metrics = stage.metrics
    line = f"{metrics['tokens']:,} tokens at {metrics['tokens_per_second']:,.0f} tokens/s; "
    line += f"on {job.kind}'s grid " * bool(job.kind) + quality_text(metrics["after"])
    log.finished("recover", line, stage)
    return stage
