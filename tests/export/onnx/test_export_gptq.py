"""GPTQ against plain rounding: what counts is the error of the outputs on the inputs it was told of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx_helpers import dequantize, exported
from tiny_llama import UNEQUAL, Checkpoint

from minigpt_edge_export.decoder import read_checkpoint
from minigpt_edge_export.onnx.gptq import quantize_gptq
from minigpt_edge_export.onnx.grams import collect_grams, memory
from minigpt_edge_export.onnx.weights import Packed, quantize_matrix
from minigpt_edge_runtime.engines.open import open_engine


def correlated(columns: int, rows: int = 4000) -> np.ndarray:
    """Inputs that a few directions dominate, as hidden states are: float32 [rows, columns]."""
    rng = np.random.default_rng(1)
    mixing = rng.normal(size=(columns, columns)) * rng.exponential(1, columns)[:, None]
    return (rng.normal(size=(rows, columns)) @ mixing / columns**0.5).astype(np.float32)


@pytest.mark.parametrize(("bits", "columns", "block"), [(4, 96, 32), (4, 80, 32), (4, 96, 128), (8, 96, 32)])
@pytest.mark.parametrize("symmetric", [True, False])
def test_outputs_change_less_than_by_rounding(bits: int, columns: int, block: int, symmetric: bool) -> None:
    inputs = correlated(columns)
    matrix = np.random.default_rng(2).normal(size=(48, columns)).astype(np.float32)
    gram = inputs.T @ inputs / np.float32(len(inputs))
    importance = np.ascontiguousarray(np.diag(gram))

    def error(packed: Packed) -> float:
        found = dequantize(packed, bits, columns)
        return float(((inputs @ (found - matrix).T) ** 2).mean())

    best = error(quantize_gptq(matrix, gram, bits, block, symmetric))
    assert best < 0.8 * error(quantize_matrix(matrix, bits, block, symmetric, importance))
    assert best < 0.8 * error(quantize_matrix(matrix, bits, block, symmetric))


@pytest.mark.parametrize("dead", [slice(3, 9), slice(None)])
def test_inputs_that_never_came_do_no_harm(dead: slice) -> None:
    inputs = correlated(64)
    inputs[:, dead] = 0
    matrix = np.random.default_rng(2).normal(size=(16, 64)).astype(np.float32)
    packed = quantize_gptq(matrix, inputs.T @ inputs / np.float32(len(inputs)), 4, 32, False)
    found = dequantize(packed, 4, 64)
    assert np.isfinite(found).all() and np.abs(found - matrix).max() < 1.5


def test_grams_are_those_of_the_checkpoint(make: Callable[..., Checkpoint], tmp_path: Path) -> None:
    """Of torch's own hidden states, at the input of the first and the last block's products."""
    import torch

    checkpoint = make(UNEQUAL)
    rows = np.random.default_rng(4).integers(0, 400, (3, 40))
    seen: dict[str, list[np.ndarray]] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(_module: object, inputs: tuple[torch.Tensor, ...]) -> None:
            seen.setdefault(name, []).append(inputs[0].detach().numpy().reshape(-1, inputs[0].shape[-1]))

        return hook

    layers = checkpoint.model.model.layers
    modules = {
        "blocks.0.attention_norm": layers[0].self_attn.k_proj,
        "blocks.1.attention": layers[1].self_attn.o_proj,
        "blocks.2.mlp_norm": layers[2].mlp.up_proj,
        "blocks.2.gated": layers[2].mlp.down_proj,
    }
    handles = [module.register_forward_pre_hook(watch(name)) for name, module in modules.items()]
    with torch.inference_mode():
        checkpoint.model(torch.tensor(rows))
    for handle in handles:
        handle.remove()
    decoder = read_checkpoint(checkpoint.path)
    grams = collect_grams(decoder, rows.tolist(), tmp_path, 1)
    assert memory(decoder) == 4 * decoder.parameters + sum(gram.nbytes for gram in grams.values())
    assert len(grams) == 4 * 3 and not list(tmp_path.iterdir())
    for name, values in seen.items():
        expected = sum(value.T @ value for value in values) / rows.size
        np.testing.assert_allclose(grams[name], expected, atol=1e-4 * float(np.abs(expected).max()))


def test_a_model_comes_closer(make: Callable[..., Checkpoint], tmp_path: Path) -> None:
    checkpoint = make(UNEQUAL)
    rows = np.random.default_rng(5).integers(0, 400, (8, 64)).tolist()
    grams = collect_grams(read_checkpoint(checkpoint.path), rows, tmp_path, 1)
    off = {}
    for name, options in (("plain", {}), ("gptq", {"grams": grams})):
        found = []
        for precision in ("fp32", "int4-64"):
            path = exported(checkpoint, tmp_path / f"{name}-{precision}", precision, **options)
            with open_engine(path, 64, 1, logits_all=True) as engine:
                found.append(engine.logits(rows[0]))
        off[name] = float(((found[0] - found[1]) ** 2).mean())
    assert off["gptq"] < 0.9 * off["plain"]  # int8 products and the int8 head are in both
