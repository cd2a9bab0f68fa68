"""What pruning and recovery need in memory, estimated before they start, and what there is.

The estimates add up what is held at once: weights, streams of hidden states, sums of products, the training
step. They were fitted to measured peaks (docs/reliability.md) and lean to the high side.
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minigpt_edge_runtime.errors import EdgeError

PROCESS = 900 << 20  # torch, transformers and what they load
COMPILED = 400 << 20  # the compiler of the training step
EAGER = 1.5  # activations that adapters keep, whose step is not compiled, over those of all weights
GRAMS = 5  # matrices of a half's width that a refit holds
_CGROUPS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def available() -> int:
    """Bytes that this process may still take, swap left out."""
    import psutil

    free = int(psutil.virtual_memory().available)
    for path in _CGROUPS:
        with suppress(OSError, ValueError):  # "max" is no number
            free = min(free, int(path.read_text()) - psutil.Process().memory_info().rss)
    return free


def of_pruning(config: dict[str, Any], parameters: int, tokens: int, *, lazy: bool) -> int:
    """Bytes that pruning takes.

    Args:
        config: with LLaMA's names for its sizes.
        parameters: of the dense model.
        tokens: of calibration.
        lazy: blocks stay on disk.
    """
    from minigpt_edge.evaluate.perplexity import BATCH_TOKENS
    from minigpt_edge.precision import compute_dtype
    from minigpt_edge.shrink.decide import SENSITIVITY_TOKENS
    from minigpt_edge.streams import KEPT_BYTES

    size, blocks = compute_dtype().itemsize, config["num_hidden_layers"]
    hidden, width, rows = (config[name] for name in ("hidden_size", "intermediate_size", "vocab_size"))
    tables = rows * hidden * (1 if config["tie_word_embeddings"] else 2)
    block = (parameters - tables) / blocks
    weights = 4 * (tables + 3 * block) if lazy else 4 * 1.2 * parameters
    entering = size * (blocks + 1) * min(tokens, SENSITIVITY_TOKENS) * hidden  # all blocks, for the costs
    streams = max(2 * 4 * tokens * hidden + min(KEPT_BYTES, size * tokens * width), entering)
    logits = 2 * 4 * BATCH_TOKENS * rows
    return math.ceil(PROCESS + weights + streams + GRAMS * 4 * width**2 + logits)


def of_recovery(config: dict[str, Any], parameters: int, teacher: int, micro: int, *, lora: bool) -> int:
    """Bytes that fine-tuning takes.

    Args:
        config: of the pruned model; its widths are those of the widest block.
        parameters: of the pruned model.
        teacher: parameters of the dense model, 0 without one.
        micro: tokens of one forward and backward pass.
        lora: adapters are trained in place of all weights.
    """
    from minigpt_edge.precision import compute_dtype

    size = compute_dtype().itemsize
    hidden, width, blocks = (
        config[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers")
    )
    trained = 4 * parameters * (1 if lora else 4)  # weights; gradients and AdamW's two moments
    step = micro * blocks * (10 * hidden + 4 * width) * size * (EAGER if lora else 1)
    return math.ceil(PROCESS + COMPILED + trained + size * teacher + 4 * parameters + step)


def check(needed: int, limit: int | None, what: str, hint: str) -> None:
    """EdgeError if `what` needs more than the `limit`, or where there is none, than is available."""
    there = available() if limit is None else limit
    if needed > there:
        room = "--max-memory allows" if limit is not None else "are free"
        raise EdgeError(
            f"{what} needs about {needed / 2**30:.1f} GiB of memory, {there / 2**30:.1f} GiB {room}",
            hint,
        )


def stays_on_disk(base: Path, calibration_tokens: int, limit: int | None, *, may: bool) -> bool:
    """Whether a model's blocks stay on disk while it is pruned: it is large, or the limit asks for it.

    The result is the same to the bit. `may` is False for methods that need the whole model.

    Raises:
        EdgeError: it does not fit in either way.
    """
    from minigpt_edge.checkpoint import dense_parameters, is_large, read_config

    config, parameters = read_config(base), dense_parameters(base)
    whole = of_pruning(config, parameters, calibration_tokens, lazy=False)
    lazy = may and (is_large(base) or (limit is not None and whole > limit))
    needed = of_pruning(config, parameters, calibration_tokens, lazy=True) if lazy else whole
    more = "free some memory" if limit is None else "allow more with --max-memory"
    if may and not lazy:
        more = "give --max-memory (blocks stay on disk)"
    check(needed, limit, "pruning", f"{more}, lower --calibration-tokens, or use a smaller model")
    return lazy


@dataclass(frozen=True)
class Recovery:
    """What decides the memory of recovery: the pruned and the dense checkpoint, and the kind of training."""

    checkpoint: Path
    teacher: Path | None
    lora: bool
    limit: int | None

    def needed(self, micro: int) -> int:
        """Bytes with so many tokens in one forward and backward pass."""
        from minigpt_edge.checkpoint import dense_parameters, read_config

        config, parameters = read_config(self.checkpoint), dense_parameters(self.checkpoint)
        taught = dense_parameters(self.teacher) if self.teacher else 0
        return of_recovery(config, parameters, taught, micro, lora=self.lora)

    def check(self, micro: int) -> None:
        """EdgeError if so many tokens in one pass take more than there is."""
        ways = [
            "give --max-memory (smaller passes)" if self.limit is None else "allow more with --max-memory"
        ]
        ways += ["--distill 0 (no dense model)"] if self.teacher else []
        ways += [] if self.lora else ["--lora-rank 16"]
        check(self.needed(micro), self.limit, "recovery", ", ".join(ways) + " or --no-recover")

    def micro_tokens(self, most: int, least: int) -> int:
        """Tokens of one forward and backward pass: `most`, or fewer where the limit asks for it."""
        micro = most
        while self.limit is not None and micro > least and self.needed(micro) > self.limit:
            micro //= 2
        return micro
