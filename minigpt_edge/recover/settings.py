"""What decides the result of fine-tuning, and what it remembers while it goes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from minigpt_edge_runtime.errors import EdgeError

MICRO_TOKENS = 4096  # tokens of one forward and backward pass


@dataclass(frozen=True)
class Settings:
    """What decides the result, besides the inputs: a training checkpoint resumes only under the same."""

    tokens: int
    sequence_length: int
    step_tokens: int
    lr: float
    seed: int
    threads: int
    evaluations: int
    patience: int
    until_perplexity: float | None
    teacher_share: float = 0.0
    lora_rank: int | None = None
    micro_tokens: int = MICRO_TOKENS
    processes: int = 1

    def __post_init__(self) -> None:
        for name in ("tokens", "sequence_length", "step_tokens", "threads", "evaluations", "patience"):
            if getattr(self, name) < 1:
                raise EdgeError(f"recovery: {name} must be at least 1, not {getattr(self, name)}")
        if self.lora_rank is not None and self.lora_rank < 1:
            raise EdgeError(f"recovery: the rank of LoRA must be at least 1, not {self.lora_rank}")
        if not self.lr > 0:
            raise EdgeError(f"recovery: the learning rate must be positive, not {self.lr}")
        if not 0 <= self.teacher_share <= 1:
            raise EdgeError(f"recovery: the teacher's share must be 0 to 1, not {self.teacher_share}")
        if self.sequences_per_step % self.processes:
            raise EdgeError(
                f"{self.processes} processes can't share a step of {self.sequences_per_step} sequences",
                f"start a number of processes that divides {self.sequences_per_step}",
            )

    @property
    def sequences_per_step(self) -> int:
        return max(1, self.step_tokens // self.sequence_length)

    @property
    def micro_batch(self) -> int:
        """Sequences of one pass: the largest divisor of a process's part of a step within micro_tokens."""
        most = max(1, self.micro_tokens // self.sequence_length)
        own = self.sequences_per_step // self.processes
        return max(n for n in range(1, own + 1) if n <= most and own % n == 0)

    @property
    def steps(self) -> int:
        return -(-self.tokens // (self.sequences_per_step * self.sequence_length))


@dataclass
class State:
    """What training remembers beyond the Trainer's own state; saved in every training checkpoint."""

    history: list[dict[str, Any]]
    best: float  # validation bits per byte
    best_step: int
    worse: int  # evaluations in a row without improvement
    seconds: float  # spent so far, before any interruption too
    training_seconds: float  # of these, in training steps
