"""How a pruned model is fine-tuned, and which texts it is fine-tuned on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt_edge.stages import parallel
from minigpt_edge_runtime.errors import EdgeError

if TYPE_CHECKING:
    from minigpt_edge.recover.teacher import Teacher

MICRO_TOKENS = 4096  # tokens of one forward and backward pass
STEP_TOKENS, LORA_STEP_TOKENS = 512, 2048  # small steps learn more from a token: docs/decisions.md 53
LR, LORA_LR = 3e-4, 2e-3
EMBEDDING_RATE = 0.3  # of the learning rate: most rows get little but noise at a step (58)
BETA2, LORA_BETA2 = 0.98, 0.95  # AdamW's memory of squared gradients, about equally many tokens

Progress = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class TrainingTexts:
    """A corpus's train.jsonl and its validation.texts.json."""

    train: Path
    validation: Path

    @classmethod
    def of(cls, corpus: Path) -> TrainingTexts:
        """Those of a corpus stage directory."""
        return cls(corpus / "train.jsonl", corpus / "validation.texts.json")


@dataclass(frozen=True)
class FileGrid:
    """The type of a file whose numbers are trained, and what its scales are weighted by.

    Attributes:
        kind: the blocks' matrices', of `minigpt_edge_export.gguf.grids.GRIDS`.
        importance: imatrix.safetensors.
    """

    kind: str
    importance: Path


@dataclass(frozen=True)
class RecoverConfig:
    """What decides the result of recovery besides its inputs.

    Attributes:
        tokens: how many to train on, rounded up to whole steps; the text repeats where it is shorter.
        sequence_length, step_tokens: tokens of a sequence and of an optimizer step, at least a sequence of
            each process; None takes STEP_TOKENS or LORA_STEP_TOKENS.
        lr: peak of AdamW's learning rate: 5 % linear warm-up, then linearly to 0. None takes LR or LORA_LR.
        embedding_rate: the rate of embedding and head, as a share of `lr`.
        evaluations: on the validation windows, evenly spread, besides one before training.
        patience: stop after that many evaluations in a row without improvement.
        until_perplexity: stop at an evaluation with this perplexity per base token or less.
        teacher: the dense model, whose predictions are part of the target; None does without.
        grid: train what a file of a type will hold (`on_grid`); None trains float32.
        plain_share: of the steps, which train float32 first whatever the grid.
        keep_zeros: weights of matrices that are zero stay so, as a mask made them.
        lora_rank: train adapters of that rank beside the blocks' matrices and merge them at the end, instead
            of training all weights; never compiled.
        micro_tokens: of one forward and backward pass at most; fewer take less memory and more time.
        processes: that train together, each on its share of every step.
        checkpoint_seconds: time between training checkpoints.
        fork: where the training checkpoint after the plain steps lies, or is put: recoveries that differ in
            the grid alone go on from it.
        resume: go on from the last whole training checkpoint, if there is one.

    Raises:
        EdgeError: a value that makes no sense.
    """

    tokens: int
    sequence_length: int = 512
    step_tokens: int | None = None
    lr: float | None = None
    embedding_rate: float = EMBEDDING_RATE
    seed: int = 0
    threads: int = 2
    evaluations: int = 3
    patience: int = 2
    until_perplexity: float | None = None
    teacher: Teacher | None = None
    grid: FileGrid | None = None
    plain_share: float = 0.0
    keep_zeros: bool = False
    lora_rank: int | None = None
    micro_tokens: int = MICRO_TOKENS
    processes: int = field(default_factory=parallel.processes)
    # Two runs that differ in these alone have the same result.
    checkpoint_seconds: float = field(default=90.0, compare=False)
    fork: Path | None = field(default=None, compare=False)
    resume: bool = field(default=True, compare=False)

    def __post_init__(self) -> None:
        for name in ("tokens", "sequence_length", "step_tokens", "threads", "evaluations", "patience"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise EdgeError(f"recovery: {name} must be at least 1, not {value}")
        if self.lora_rank is not None and self.lora_rank < 1:
            raise EdgeError(f"recovery: the rank of LoRA must be at least 1, not {self.lora_rank}")
        if not self.learning_rate > 0:
            raise EdgeError(f"recovery: the learning rate must be positive, not {self.lr}")
        if not 0 <= self.plain_share <= 1:
            raise EdgeError(f"recovery: plain_share must be 0 to 1, not {self.plain_share}")
        if self.grid and self.lora_rank:
            raise EdgeError("recovery: adapters are not trained on a file's grid")
        if not self.embedding_rate > 0:
            raise EdgeError(f"recovery: the embedding's rate must be positive, not {self.embedding_rate}")
        if not 0 <= self.teacher_share <= 1:
            raise EdgeError(f"recovery: the teacher's share must be 0 to 1, not {self.teacher_share}")
        if self.sequences_per_step % self.processes:
            raise EdgeError(
                f"{self.processes} processes can't share a step of {self.sequences_per_step} sequences",
                f"start a number of processes that divides {self.sequences_per_step}",
            )

    @property
    def learning_rate(self) -> float:
        """Its peak."""
        return self.lr if self.lr is not None else LORA_LR if self.lora_rank else LR

    @property
    def teacher_share(self) -> float:
        """The teacher's share of the target at the first step."""
        return self.teacher.share if self.teacher else 0.0

    @property
    def beta2(self) -> float:
        """AdamW's second."""
        return LORA_BETA2 if self.lora_rank else BETA2

    @property
    def sequences_per_step(self) -> int:
        tokens = self.step_tokens or (LORA_STEP_TOKENS if self.lora_rank else STEP_TOKENS)
        return max(self.processes, tokens // self.sequence_length)

    @property
    def micro_batch(self) -> int:
        """Sequences of one pass: the largest divisor of a process's share of a step within micro_tokens."""
        most = max(1, self.micro_tokens // self.sequence_length)
        own = self.sequences_per_step // self.processes
        return max(n for n in range(1, own + 1) if n <= most and own % n == 0)

    @property
    def steps(self) -> int:
        return -(-self.tokens // (self.sequences_per_step * self.sequence_length))

    @property
    def plain_steps(self) -> int:
        """How many come before those on a grid; up to there a run is the same with any grid or none."""
        return min(round(self.plain_share * self.steps), self.steps - 1)

    def key(self) -> dict[str, Any]:
        """What an interrupted run must have in common with the one that resumes it, as JSON."""
        values: dict[str, Any] = {one.name: getattr(self, one.name) for one in fields(self) if one.compare}
        taught = self.teacher.windows if self.teacher else 0
        grid = self.grid.kind if self.grid else None
        values |= {"lr": self.learning_rate, "teacher": [self.teacher_share, taught], "grid": grid}
        return values
