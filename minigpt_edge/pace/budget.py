"""What becomes of a build's time: tokens of calibration and recovery, from speeds that were measured.

All of it is arithmetic on what finished stages hold, so that a build that is repeated chooses the same. The
unit of what can't be measured beforehand is a forward pass of the dense model over UNIT_TOKENS; the factors
come from whole builds (docs/decisions.md 50) and lean to the high side.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from minigpt_edge.recipe import time_text
from minigpt_edge.recover.stage import SHARED
from minigpt_edge_export.gguf.grids import GPTQ_TYPES
from minigpt_edge_export.targets import PRECISIONS, Target
from minigpt_edge_runtime.errors import EdgeError

UNIT_TOKENS = 32_768
CALIBRATION_STEP = 8_192  # tokens that calibration is rounded to
LEAST_CALIBRATION, MOST_CALIBRATION = 32_768, 262_144  # perplexity falls by 4 % over four times the tokens
LEAST_RECOVERY = 65_536  # below it a training step is not even compiled
MOST_PASSES = 16  # a text read more often teaches next to nothing more (arXiv 2305.16264)
PRUNING_SHARE = 0.25  # of the time, where calibration gets more than LEAST_CALIBRATION

PRUNING = 5.0  # units that pruning takes whatever calibration reads
CALIBRATION = 1.3  # forward passes that calibration and refit take of a token
TRAINING = 2.0  # forward passes of the dense model that training takes of a token, teacher included
BESIDE = 5.0  # units for the trial of a few steps, compiling them, and evaluations
PROCESS = 5.0  # seconds for the processes that measure a file to start
# Units: of the F16 file, of a family's choice of types, of one type, of an ONNX file,
F16, FAMILY, TYPE, ONNX = 0.4, 1.8, 0.4, 1.3
# more where GPTQ rounds to few bits,
ROUNDED = 3.0
ROUNDED_TYPES = {name.lower() for name in GPTQ_TYPES} | {n for n, p in PRECISIONS.items() if p.bits == 4}
MEASURED = {"gguf": 1.2, "onnx": 0.9}  # of measuring a file that ships,
BASELINE = {"gguf": 2.0, "onnx": 1.3}  # and of making and measuring one of the dense model.
ON_GRID = 1.05  # a training step on a file's grid, of a plain one
LATE = 1.25  # a build that took so many times its time says so


@dataclass(frozen=True)
class Asked:
    """What a build is to do in a time.

    Attributes:
        time: seconds.
        targets: files that ship.
        baseline: whether the dense model is measured in their formats too.
        train_tokens: of the training text.
        processes: that work on the build.
        kinds: types whose grids recoveries are trained on, each another; None among them for float32.
    """

    time: int
    targets: Sequence[Target]
    baseline: bool
    train_tokens: int
    processes: int = 1
    kinds: Collection[str | None] = (None,)

    @property
    def recoveries(self) -> float:
        """What all recoveries take, of one in float32: several share their first steps."""
        own = sum(ON_GRID if kind else 1.0 for kind in self.kinds)
        return own if len(self.kinds) == 1 else SHARED + (1 - SHARED) * own

    @property
    def most_recovery(self) -> int:
        """Tokens of recovery that are worth anything."""
        return MOST_PASSES * self.train_tokens


@dataclass(frozen=True)
class TrainingPace:
    """How fast the pruned model trains.

    Attributes:
        step_tokens, step_seconds: of an optimizer step.
        evaluation_seconds: of an evaluation.
        other_seconds: before the first step, compiling left out: the trial has done that.
    """

    step_tokens: int
    step_seconds: float
    evaluation_seconds: float
    other_seconds: float


def tail_seconds(asked: Asked, token_seconds: float) -> float:
    """What files, choice of types and measurements take where the dense model reads a token in so long."""
    units, processes, kinds = 0.0, 0, set()
    for target in asked.targets:
        made = ONNX if target.format == "onnx" else TYPE if target.exact or not target.quantized else FAMILY
        units += made + MEASURED[target.format] + ROUNDED * bool(ROUNDED_TYPES.intersection(target.types))
        kinds.add((target.format, target.types[0] if target.exact else target.name))
        processes += 1
    if any(target.format == "gguf" for target in asked.targets):
        units += F16
        kinds.add(("gguf", "f16"))
    if asked.baseline:
        units += sum(BASELINE[file_format] for file_format, _ in kinds)
        processes += len(kinds)
    return units * UNIT_TOKENS * token_seconds + processes * PROCESS


def calibration_tokens(asked: Asked, spent: float, token_seconds: float, most: int) -> int:
    """Tokens to calibrate on: as many as PRUNING_SHARE of the time allows, where recovery keeps enough.

    Args:
        spent: seconds that the build has taken so far.
        token_seconds: of the dense model's forward pass over a token, in one process.
        most: tokens that there are, or that memory holds.

    Raises:
        EdgeError: the time is too short; it says how much would do.
    """
    unit, each = UNIT_TOKENS * token_seconds, CALIBRATION * token_seconds / asked.processes
    least = min(LEAST_CALIBRATION, most)
    training = min(LEAST_RECOVERY, asked.most_recovery) * TRAINING * token_seconds / asked.processes
    training *= asked.recoveries
    fixed = spent + (PRUNING + BESIDE) * unit + training + tail_seconds(asked, token_seconds)
    if fixed + least * each > asked.time:
        raise _too_short(asked, fixed + least * each)
    share = (PRUNING_SHARE * asked.time - PRUNING * unit) / each
    tokens = min(share, (asked.time - fixed) / each, most, MOST_CALIBRATION)
    return max(least, int(tokens) // CALIBRATION_STEP * CALIBRATION_STEP)


def recovery_tokens(
    asked: Asked, spent: float, tail: float, pace: TrainingPace, evaluations: int
) -> tuple[int, float]:
    """Tokens to train on in what is left, a whole number of steps, and the seconds that recovery then takes.

    Args:
        spent: seconds that the build has taken so far, the trial of a few steps included.
        tail: seconds that files and measurements will take.
        evaluations: of recovery.

    Raises:
        EdgeError: too little is left; it says how much time would do.
    """
    beside = evaluations * pace.evaluation_seconds + pace.other_seconds
    left, step_seconds = asked.time - spent - tail - beside, asked.recoveries * pace.step_seconds
    most = max(1, asked.most_recovery // pace.step_tokens)
    least = min(math.ceil(LEAST_RECOVERY / pace.step_tokens), most)
    if left < least * step_seconds:
        # More time is shared with calibration.
        lacking = least * step_seconds - left
        raise _too_short(asked, asked.time + lacking / (1 - PRUNING_SHARE))
    steps = min(int(left / step_seconds), most)
    return steps * pace.step_tokens, steps * step_seconds + beside


def _too_short(asked: Asked, seconds: float) -> EdgeError:
    least = time_text(60 * math.ceil(seconds / 60))
    return EdgeError(
        f"--time {time_text(asked.time)} is too short for this build on this machine: it takes about {least} "
        "with the fewest tokens of calibration and recovery that are worth it",
        f"give --time {least} or more; fewer targets and --no-baseline take less",
    )
