"""Memory that recovery takes, estimated before it starts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minigpt_edge.stages.memory import PROCESS, check

COMPILED = 400 << 20  # bytes that the compiler of the training step takes
EAGER = 1.5  # a step with adapters is not compiled and keeps so many times the activations


def of_recovery(
    config: dict[str, Any], parameters: int, micro: int, *, lora: bool, rounded: bool = False
) -> int:
    """Bytes that fine-tuning takes.

    Args:
        config: of the pruned model; its widths are those of the widest block.
        parameters: of the pruned model.
        micro: tokens of one forward and backward pass.
        lora: adapters are trained in place of all weights.
        rounded: steps are on a file's grid, with the float32 weights beside the rounded ones.
    """
    from minigpt_edge.models.precision import compute_dtype

    size = compute_dtype().itemsize
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers")
    hidden, width, blocks = (config[name] for name in sizes)
    trained = 4 * parameters * (1 if lora else 4)  # weights; gradients and AdamW's two moments
    trained += 4 * parameters * rounded
    step = micro * blocks * (10 * hidden + 4 * width) * size * (EAGER if lora else 1)
    head = size * config["vocab_size"] * hidden  # the teacher's
    return math.ceil(PROCESS + COMPILED + trained + head + 4 * parameters + step)


@dataclass(frozen=True)
class Recovery:
    """What decides the memory of recovery: the pruned checkpoint, and the kind of training."""

    checkpoint: Path
    lora: bool
    limit: int | None
    rounded: bool = False

    def needed(self, micro: int) -> int:
        """Bytes with so many tokens in one forward and backward pass."""
        from minigpt_edge.models.checkpoint import read_config, stored_parameters

        config, parameters = read_config(self.checkpoint), stored_parameters(self.checkpoint)
        return of_recovery(config, parameters, micro, lora=self.lora, rounded=self.rounded)

    def check(self, micro: int) -> None:
        """EdgeError if so many tokens in one pass take more than there is."""
        smaller = "give --max-memory (smaller passes)"
        ways = [smaller if self.limit is None else "allow more with --max-memory"]
        ways += [] if self.lora else ["--lora-rank 16"]
        check(self.needed(micro), self.limit, "recovery", ", ".join(ways) + " or --no-recover")

    def micro_tokens(self, most: int, least: int) -> int:
        """Tokens of one forward and backward pass: `most`, or fewer where the limit asks for it."""
        micro = most
        while self.limit is not None and micro > least and self.needed(micro) > self.limit:
            micro //= 2
        return micro
