"""Products are in the dtype that the processor multiplies faster."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch  # noqa: TID253

from minigpt_edge.models.precision import _dtype_of, products_of, sum_dtype


@pytest.mark.parametrize(
    ("cpu", "supported", "amx", "dtype"),
    [
        ("Intel(R) Xeon(R) Platinum 8481C", True, True, torch.bfloat16),
        ("Intel(R) Xeon(R) Processor", True, False, torch.float32),
        ("Intel(R) Core(TM) Ultra 7 155U", False, False, torch.float32),
        ("AMD EPYC 9R14", True, False, torch.bfloat16),
        (None, True, False, torch.bfloat16),
        (None, False, False, torch.float32),
    ],
)
def test_the_processor_decides(
    monkeypatch: pytest.MonkeyPatch, cpu: str | None, supported: bool, amx: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr("minigpt_edge_runtime.device.cpu_model", lambda: cpu)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert _dtype_of.__wrapped__(torch.device("cpu")) is dtype


def test_products_of_float32_are_not_rounded() -> None:
    a, b = torch.randn(64, 512), torch.randn(512, 64)
    exact = a.double() @ b.double()
    with products_of(a):
        assert (a @ b - exact).abs().max() < 1e-3
    with products_of(a.bfloat16()):  # exact for what was bfloat16 before
        few = a.bfloat16().float(), b.bfloat16().float()
        assert (few[0] @ few[1] - few[0].double() @ few[1].double()).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("kind", "module", "dtype"),
    [
        ("cuda:0", SimpleNamespace(is_bf16_supported=lambda including_emulation: True), torch.bfloat16),
        ("cuda:0", SimpleNamespace(is_bf16_supported=lambda including_emulation: False), torch.float32),
        ("xpu:0", SimpleNamespace(is_bf16_supported=lambda: True), torch.bfloat16),
        ("mps:0", SimpleNamespace(), torch.bfloat16),
    ],
)
def test_an_accelerator_decides(
    monkeypatch: pytest.MonkeyPatch, kind: str, module: SimpleNamespace, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    assert _dtype_of.__wrapped__(torch.device(kind)) is dtype


def test_sums_of_what_was_bfloat16_are_exact_on_cuda_too() -> None:
    values: Any = SimpleNamespace(device=torch.device("cuda:0"), dtype=torch.bfloat16)
    products, before = torch.backends.cuda.matmul, torch.backends.cuda.matmul.fp32_precision
    with products_of(values):
        assert products.fp32_precision == "tf32"  # ten bits of fraction, where bfloat16 has seven
    assert products.fp32_precision == before
    values.dtype = torch.float32
    with products_of(values):
        assert products.fp32_precision == before


def test_metal_has_no_float64() -> None:
    kinds = {"cpu": torch.float64, "cuda:0": torch.float64, "mps:0": torch.float32}
    assert {kind: sum_dtype(torch.device(kind)) for kind in kinds} == kinds
