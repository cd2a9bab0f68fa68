"""The stages that measure how fast this machine is, and what a build with `--time` then chooses.

Only what was measured is cached. What is chosen follows from it and from the seconds in the manifests of the
stages before, so a build that was interrupted or is repeated chooses the same.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minigpt_edge.pace.budget import Asked, TrainingPace, calibration_tokens, recovery_tokens, tail_seconds
from minigpt_edge.pace.measure import STEPS, forward_pace, training_pace
from minigpt_edge.prune.methods.registry import pruner_of
from minigpt_edge.prune.settings import WINDOW, prune_settings
from minigpt_edge.recipe import time_text
from minigpt_edge.recover.stage import CODE as RECOVER_CODE
from minigpt_edge.recover.stage import RecoveryJob, wanted_grid
from minigpt_edge.report.build_report import TimeBudget
from minigpt_edge.stages import parallel
from minigpt_edge.stages.context import BuildContext
from minigpt_edge.stages.memory import available
from minigpt_edge.stages.stage import Stage, StageSpec, run_stage
from minigpt_edge_export.targets import parse_target

CODE = ("minigpt_edge.pace", *RECOVER_CODE)


@dataclass(frozen=True)
class Pace:
    """What a build with a time has measured and chosen.

    Attributes:
        reading: the stage with the dense model's speed.
        training: the stage with the pruned model's; None before it is pruned.
        budget: what was chosen; None before that.
    """

    asked: Asked
    text: Stage
    dense: Stage
    reading: Stage
    training: Stage | None = None
    budget: TimeBudget | None = None

    @property
    def spent(self) -> float:
        """Seconds before pruning, downloads left out."""
        return seconds_of(self.text, self.dense, self.reading)

    @property
    def tail(self) -> float:
        """Seconds that files and measurements will take."""
        return tail_seconds(self.asked, self.reading.metrics["token_seconds"])


def seconds_of(*stages: Stage) -> float:
    """What stages took when they were made, downloads left out."""
    return sum(
        float(stage.manifest["seconds"]) - float(stage.metrics.get("download_seconds", 0)) for stage in stages
    )


def choose_calibration(context: BuildContext, text: Stage, dense: Stage) -> tuple[BuildContext, Pace]:
    """The build with tokens of calibration for its time.

    Raises:
        EdgeError: the time is too short.
    """
    recipe = context.recipe
    targets = [parse_target(name) for name in dict.fromkeys(recipe.targets)]
    asked = Asked(
        time=recipe.time or 0,
        targets=targets,
        baseline=recipe.baseline,
        train_tokens=text.metrics["splits"]["train"]["base_tokens"],
        processes=parallel.processes(),
        kinds={wanted_grid(recipe, target) for target in targets},
    )
    pace = Pace(asked, text, dense, _reading_stage(context, text))
    each = pace.reading.metrics["token_seconds"]
    tokens = calibration_tokens(asked, pace.spent, each, _most_calibration(context, pace))
    context.log.line(
        "time",
        f"{time_text(asked.time)}: {tokens:,} calibration tokens, since the dense model reads "
        f"{1 / each:,.0f} tokens/s",
    )
    return replace(context, recipe=replace(recipe, calibration_tokens=tokens)), pace


def choose_recovery(context: BuildContext, pace: Pace, pruned: Stage) -> tuple[BuildContext, Pace]:
    """The same with tokens of recovery for what is left of the time once the model is pruned.

    Raises:
        EdgeError: too little is left.
    """
    recipe, asked = context.recipe, pace.asked
    stage, evaluations = _training_stage(context, pace, pruned)
    found = stage.metrics
    speed = TrainingPace(
        found["step_tokens"], found["step_seconds"], found["evaluation_seconds"], found["other_seconds"]
    )
    spent = pace.spent + seconds_of(pruned, stage)
    tokens, training = recovery_tokens(asked, spent, pace.tail, speed, evaluations)
    budget = TimeBudget(
        asked=asked.time,
        calibration_tokens=recipe.calibration_tokens,
        recovery_tokens=tokens,
        reading_tokens_per_second=1 / pace.reading.metrics["token_seconds"],
        training_tokens_per_second=speed.step_tokens / speed.step_seconds,
        passes=tokens / asked.train_tokens,
        seconds={
            "text and dense model": pace.spent,
            "pruning": seconds_of(pruned),
            "recovery": seconds_of(stage) + training,
            "files and measurements": pace.tail,
        },
    )
    context.log.line("time", _line(budget))
    chosen = replace(context, recipe=replace(recipe, recover_tokens=tokens))
    return chosen, replace(pace, training=stage, budget=budget)


def _line(budget: TimeBudget) -> str:
    """What was chosen and from what."""
    took = {name: _minutes(seconds) for name, seconds in budget.seconds.items()}
    line = (
        f"{time_text(budget.asked)}: {budget.calibration_tokens:,} calibration tokens ({took['pruning']}), "
        f"{budget.recovery_tokens:,} recovery tokens at {budget.training_tokens_per_second:,.0f} tokens/s "
        f"({took['recovery']}, {budget.passes:.1f} passes over the text), {took['files and measurements']} "
        "for files and measurements"
    )
    if (rest := budget.asked - sum(budget.seconds.values())) > 0.1 * budget.asked:
        line += f"; {_minutes(rest)} are left, since more passes over this text would teach little"
    return line


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def _reading_stage(context: BuildContext, text: Stage) -> Stage:
    """How fast the dense model reads training text, and how much memory is free."""
    from minigpt_edge.recover.config import TrainingTexts

    recipe, base = context.recipe, context.base
    window = min(WINDOW, base.context)

    def make(out: Path) -> dict[str, Any]:
        texts = TrainingTexts.of(text.path)
        with context.computing():
            free = available()
            found = forward_pace(base.path, texts, window=window, threads=recipe.threads, clock=context.clock)
        return {**found, "free_bytes": free}

    context.log.step("time: speed of the dense model")
    return run_stage(
        context.work,
        StageSpec(
            "pace-dense",
            settings={
                "window": window,
                "threads": recipe.threads,
                **parallel.process_setting(),
                **context.device_setting,
            },
            inputs={"model": base.fingerprint, "corpus": text.digest},
            code=CODE,
            together=True,
        ),
        make,
    )


def _most_calibration(context: BuildContext, pace: Pace) -> int:
    """Tokens of calibration that the text has and memory holds; pruning itself refuses what never fits."""
    from minigpt_edge.models.checkpoint import read_config, stored_parameters
    from minigpt_edge.prune.memory import of_pruning

    recipe, base = context.recipe, context.base
    window = min(WINDOW, base.context)
    limit = recipe.max_memory or pace.reading.metrics["free_bytes"]
    config, parameters = read_config(base.path), stored_parameters(base.path)
    lazy = pruner_of(prune_settings(recipe)).blockwise
    tokens = pace.asked.train_tokens // 2 // window * window  # windows leave out the rests of texts
    while tokens > 4 * window and of_pruning(config, parameters, tokens, lazy=lazy) > limit:
        tokens = tokens // 2 // window * window
    return tokens


def _training_stage(context: BuildContext, pace: Pace, pruned: Stage) -> tuple[Stage, int]:
    """How fast the pruned model trains: its recovery, ended after a few steps; and evaluations of a whole
    one."""
    from minigpt_edge.recover.session import COMPILE_FROM

    # As many tokens as are compiled for, as recovery will be.
    trial = replace(context, recipe=replace(context.recipe, recover_tokens=COMPILE_FROM))
    job = RecoveryJob.of(trial, pace.text, pace.dense, pruned)
    config = job.config()
    log, step_tokens = context.log, config.sequences_per_step * config.sequence_length

    def make(out: Path) -> dict[str, Any]:
        often = max(1, config.steps // STEPS)  # so that the first evaluation comes after STEPS
        short = replace(config, evaluations=often, until_perplexity=None, resume=False)
        found = training_pace(
            lambda stamp: job.run(out / "trial", short, stamp),
            context.clock,
            lambda entry: log.step("time: speed of recovery", entry["step"], STEPS),
        )
        parallel.barrier()  # nobody writes there any more
        if parallel.rank() == 0:
            shutil.rmtree(out / "trial")
        return {**found, "step_tokens": step_tokens}

    log.step("time: speed of recovery")
    spec = replace(job.spec(), name="pace-recovery", code=CODE, resumable=False)
    return run_stage(context.work, spec, make), config.evaluations
