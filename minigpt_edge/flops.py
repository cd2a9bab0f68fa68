"""What training costs in arithmetic, what this machine can do, and how much memory the process took."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def training_flops(model: nn.Module, length: int) -> float:
    """Floating-point operations per token of forward and backward, in sequences of `length` tokens.

    6 per matrix parameter, the head's counted once if tied, and causal attention's two products.
    """
    config: Any = model.config
    total = 0.0
    heads_width = 0
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2 and ("embed" not in name or config.tie_word_embeddings):
            total += 6 * parameter.numel()
        if name.endswith("o_proj.weight"):
            heads_width += parameter.shape[1]
    return total + 6 * length * heads_width


def matmul_flops(
    size: int = 2048, seconds: float = 0.5, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Operations per second of a square product in the training dtype on all threads, the best of some."""
    import torch

    from minigpt_edge.precision import compute_dtype

    a = torch.ones(size, size, dtype=compute_dtype())
    best, deadline = float("inf"), time.monotonic() + seconds
    while time.monotonic() < deadline or best == float("inf"):
        begun = clock()
        torch.mm(a, a.t())
        best = min(best, clock() - begun)
    return 2 * size**3 / best


def peak_memory_bytes() -> int:
    """The largest resident size of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
