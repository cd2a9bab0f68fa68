"""The stage that recovers: the pruned checkpoint, fine-tuned."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt_edge.evaluation.stage import CODE as EVALUATE_CODE
from minigpt_edge.evaluation.stage import quality_text
from minigpt_edge.models.dense_states import DENSE_STATES
from minigpt_edge.prune.context import CHECKPOINT, PLAN
from minigpt_edge.prune.settings import WINDOW
from minigpt_edge.recover.memory import Recovery
from minigpt_edge.stages.context import BuildContext
from minigpt_edge.stages.parallel import process_setting
from minigpt_edge.stages.stage import Stage, StageSpec, run_stage

if TYPE_CHECKING:
    from minigpt_edge.recipe import Recipe
    from minigpt_edge.recover.config import Progress, RecoverConfig

CODE = ("minigpt_edge.recover", "minigpt_edge.prune", *EVALUATE_CODE)


@dataclass(frozen=True)
class RecoveryJob:
    """The recovery that a build asks for.

    Attributes:
        until: perplexity per base token to stop at.
        room: what decides its memory.
        micro: tokens of one forward and backward pass.
    """

    context: BuildContext
    text: Stage
    pruned: Stage
    until: float | None
    room: Recovery
    micro: int

    @classmethod
    def of(cls, context: BuildContext, text: Stage, dense: Stage, pruned: Stage) -> RecoveryJob:
        """That of a recipe which does not do without."""
        recipe, base = context.recipe, context.base
        until = dense.metrics["perplexity_per_base_token"] if recipe.recover == "dense" else None
        room = Recovery(pruned.path / CHECKPOINT, recipe.lora_rank is not None, recipe.max_memory)
        micro = room.micro_tokens(_most(recipe), min(WINDOW, base.context))
        return cls(context, text, pruned, until, room, micro)

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
                **process_setting(),
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
        from minigpt_edge.recover.config import RecoverConfig
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

        self.room.check(self.micro)
        return recover(
            self.pruned.path / CHECKPOINT,
            out,
            TrainingTexts.of(self.text.path),
            config,
            before=self.pruned.metrics["quality"],
            on_progress=on_progress,
        )


def _most(recipe: Recipe) -> int:
    """Tokens of one forward and backward pass where memory does not limit them: those of a step."""
    from minigpt_edge.recover.config import LORA_STEP_TOKENS, STEP_TOKENS

    return LORA_STEP_TOKENS if recipe.lora_rank else STEP_TOKENS


def recover_stage(context: BuildContext, text: Stage, dense: Stage, pruned: Stage) -> Stage | None:
    """The fine-tuned checkpoint; None if the recipe does without."""
    if context.recipe.recover == "no":
        return None
    job, log = RecoveryJob.of(context, text, dense, pruned), context.log
    log.step("recover")
    stage = run_stage(context.work, job.spec(), lambda out: job.run(out, job.config(), log.recovery))
    metrics = stage.metrics
    speed = f"{metrics['tokens']:,} tokens at {metrics['tokens_per_second']:,.0f} tokens/s; "
    log.finished("recover", speed + quality_text(metrics["after"]), stage)
    return stage
