"""Products are in the dtype that the processor multiplies faster."""

from __future__ import annotations

import pytest
import torch  # noqa: TID253

from minigpt_edge.models.precision import _dtype_of, products_of


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
    with products_of(torch.float32):
        assert (a @ b - exact).abs().max() < 1e-3
    with products_of(torch.bfloat16):  # exact for what was bfloat16 before
        few = a.bfloat16().float(), b.bfloat16().float()
        assert (few[0] @ few[1] - few[0].double() @ few[1].double()).abs().max() < 1e-3
