"""What training costs in arithmetic, and what this machine can do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def training_flops(model: nn.Module, length: int) -> float:
    """Floating-point operations per token of forward and backward, in sequences of `length` tokens.

    6 per parameter of the blocks' matrices and the head, and causal attention's two products. Adapters are
    left out: `lora.Adapter.flops` is what they change.
    """
    from minigpt_edge.models.archs import load_arch

    whole: Any = model
    arch = load_arch(whole.config)
    matrices, heads_width = whole.get_output_embeddings().weight.numel(), 0
    for block in arch.blocks(model):
        heads_width += arch.attention_out(block).in_features
        for name, parameter in block.named_parameters():
            matrices += parameter.numel() if parameter.dim() == 2 and ".lora_" not in name else 0
    return 6.0 * matrices + 6 * length * heads_width


def matmul_flops(
    size: int = 2048, seconds: float = 0.5, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Operations per second of a square product in the training dtype, the best of some, on the device that
    is computed on: all threads, if that is a processor."""
    import torch

    from minigpt_edge.models.precision import compute_dtype
    from minigpt_edge.stages.device import wait

    a = torch.ones(size, size, dtype=compute_dtype())
    best, deadline = float("inf"), time.monotonic() + seconds
    while time.monotonic() < deadline or best == float("inf"):
        begun = clock()
        torch.mm(a, a.t())
        wait()
        best = min(best, clock() - begun)
    return 2 * size**3 / best
