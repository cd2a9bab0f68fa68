"""Memory that pruning takes, estimated before it starts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from minigpt_edge.stages.device import free_memory
from minigpt_edge.stages.memory import PROCESS, check

GRAMS = 5  # matrices of a half's width that a refit holds


def of_pruning(config: dict[str, Any], parameters: int, tokens: int, *, lazy: bool) -> int:
    """Bytes that pruning takes.

    Args:
        config: with LLaMA's names for its sizes.
        parameters: of the dense model.
        tokens: of calibration.
        lazy: blocks stay on disk.
    """
    from minigpt_edge.evaluation.perplexity import BATCH_TOKENS
    from minigpt_edge.models.precision import compute_dtype
    from minigpt_edge.prune.context import SENSITIVITY_TOKENS
    from minigpt_edge.prune.streams import KEPT_BYTES

    size, blocks = compute_dtype().itemsize, config["num_hidden_layers"]
    hidden, width, rows = (config[name] for name in ("hidden_size", "intermediate_size", "vocab_size"))
    tables = rows * hidden * (1 if config["tie_word_embeddings"] else 2)
    block = (parameters - tables) / blocks
    weights = 4 * (tables + 3 * block) if lazy else 4 * 1.2 * parameters
    entering = size * (blocks + 1) * min(tokens, SENSITIVITY_TOKENS) * hidden  # all blocks, for the costs
    streams = max(2 * 4 * tokens * hidden + min(KEPT_BYTES, size * tokens * width), entering)
    logits = 2 * 4 * BATCH_TOKENS * rows
    return math.ceil(PROCESS + weights + streams + GRAMS * 4 * width**2 + logits)


def stays_on_disk(base: Path, calibration_tokens: int, limit: int | None, *, may: bool) -> bool:
    """Whether a model's blocks stay on disk while it is pruned: it is large, or the limit or the accelerator
    asks for it.

    The result is the same to the bit. `may` is False for methods that need the whole model.

    Raises:
        EdgeError: it does not fit in either way.
    """
    from minigpt_edge.models.checkpoint import is_large, read_config, stored_parameters

    config, parameters = read_config(base), stored_parameters(base)
    whole = of_pruning(config, parameters, calibration_tokens, lazy=False)
    room = free_memory() if limit is None else limit  # an accelerator's is small beside the processor's
    lazy = may and (is_large(base) or (room is not None and whole > room))
    needed = of_pruning(config, parameters, calibration_tokens, lazy=True) if lazy else whole
    more = "free some memory" if limit is None else "allow more with --max-memory"
    if may and not lazy:
        more = "give --max-memory (blocks stay on disk)"
    check(needed, limit, "pruning", f"{more}, lower --calibration-tokens, or use a smaller model")
    return lazy
