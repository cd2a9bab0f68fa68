"""In which dtype a forward or backward pass multiplies: the one that this processor multiplies faster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch  # noqa: TID253 - imported by stages that compute only


@cache
def compute_dtype() -> torch.dtype:
    """bfloat16 where the processor multiplies it faster than float32, else float32.

    Intel's AVX512-BF16 without AMX reaches half of float32's rate, and where a processor has neither it is a
    tenth (docs/decisions.md 35).
    """
    from minigpt_edge_runtime.device import cpu_model

    supported = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    slow = "Intel" in (cpu_model() or "") and not torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if supported and not slow else torch.float32


@contextmanager
def products_of(dtype: torch.dtype) -> Iterator[None]:
    """Float32 matrix products of values that were computed in a dtype.

    For bfloat16: factors are rounded to it, sums are not. That is exact for bfloat16 input. A plain bfloat16
    product would round the sums too, and a Gram matrix would not be positive definite.
    """
    products: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = products.fp32_precision
    if dtype is torch.bfloat16:
        products.fp32_precision = "bf16"
    try:
        yield
    finally:
        products.fp32_precision = before
