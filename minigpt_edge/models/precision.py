"""In which dtype a forward or backward pass multiplies: the one that the device multiplies faster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import Any

import torch  # noqa: TID253 - imported by stages that compute only
from torch import Tensor  # noqa: TID253


def compute_dtype() -> torch.dtype:
    """bfloat16 where the device that is computed on multiplies it faster than float32, else float32."""
    return _dtype_of(torch.get_default_device())


@cache
def _dtype_of(device: torch.device) -> torch.dtype:
    """That of a processor or an accelerator.

    Intel's AVX512-BF16 without AMX reaches half of float32's rate, and where a processor has neither it is a
    tenth (docs/decisions.md 35).
    """
    if device.type != "cpu":
        says: Any = getattr(torch.get_device_module(device), "is_bf16_supported", None)
        native = {"including_emulation": False} if device.type == "cuda" else {}
        known = says(**native) if says else device.type == "mps"  # which has it where torch runs
        return torch.bfloat16 if known else torch.float32
    from minigpt_edge_runtime.device import cpu_model

    supported = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    slow = "Intel" in (cpu_model() or "") and not torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if supported and not slow else torch.float32


@contextmanager
def products_of(values: Tensor) -> Iterator[None]:
    """Float32 matrix products, on their device, of values that were computed in their dtype.

    For bfloat16: factors are rounded to it, or to TF32, which holds all of its numbers; sums are not. That is
    exact for bfloat16 input. A plain bfloat16 product would round the sums too, and a Gram matrix would not
    be positive definite.
    """
    on_cuda = values.device.type == "cuda"
    products: Any = torch.backends.cuda.matmul if on_cuda else torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = products.fp32_precision
    if values.dtype is torch.bfloat16:
        products.fp32_precision = "tf32" if on_cuda else "bf16"
    try:
        yield
    finally:
        products.fp32_precision = before


def autocast(dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Products of float32 weights in a dtype, on the device that is computed on."""
    kind = torch.get_default_device().type
    return torch.autocast(kind, torch.bfloat16, enabled=dtype is torch.bfloat16)


def without_autocast(values: Tensor) -> AbstractContextManager[Any]:
    """No product on their device in another dtype than its factors have."""
    return torch.autocast(values.device.type, enabled=False)


def sum_dtype(device: torch.device) -> torch.dtype:
    """float64, or on Metal, which has none, float32."""
    return torch.float32 if device.type == "mps" else torch.float64


def widest(tensor: Tensor) -> Tensor:
    """A tensor in float64, moved to the processor where the device has none."""
    return (tensor if sum_dtype(tensor.device) is torch.float64 else tensor.cpu()).double()
