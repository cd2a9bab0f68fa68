"""GPTQ against plain rounding: what counts is the error of the outputs on the inputs it was told of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx_helpers import dequantize, exported, grams_of
from tiny_llama import UNEQUAL, Checkpoint

from minigpt_edge_export.decoder import read_checkpoint
from minigpt_edge_export.onnx.gptq import pack_gptq, pack_matrices
from minigpt_edge_export.onnx.weights import Packed, quantize_matrix
from minigpt_edge_export.targets import PRECISIONS, Precision
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

    precision = Precision("test", bits, block, symmetric)
    best = error(pack_gptq(matrix, gram, precision, block))
    assert best < 0.8 * error(quantize_matrix(matrix, bits, block, symmetric, importance))
    assert best < 0.8 * error(quantize_matrix(matrix, bits, block, symmetric))


@pytest.mark.parametrize("dead", [slice(3, 9), slice(None)])
def test_inputs_that_never_came_do_no_harm(dead: slice) -> None:
    inputs = correlated(64)
    inputs[:, dead] = 0
    matrix = np.random.default_rng(2).normal(size=(16, 64)).astype(np.float32)
    gram = inputs.T @ inputs / np.float32(len(inputs))
    packed = pack_gptq(matrix, gram, Precision("test", 4, 32, False), 32)
    found = dequantize(packed, 4, 64)
    assert np.isfinite(found).all() and np.abs(found - matrix).max() < 1.5


def test_a_model_comes_closer(make: Callable[..., Checkpoint], tmp_path: Path) -> None:
    checkpoint = make(UNEQUAL)
    rows = np.random.default_rng(5).integers(0, 400, (8, 64)).tolist()
    decoder, precision = read_checkpoint(checkpoint.path), PRECISIONS["int4-64"]
    packed = pack_matrices(decoder, precision, grams_of(checkpoint, rows))
    off = {}
    for name, options in (("plain", {}), ("gptq", {"packed": packed})):
        found = []
        for precision in ("fp32", "int4-64"):
            path = exported(checkpoint, tmp_path / f"{name}-{precision}", precision, **options)
            with open_engine(path, 64, 1, logits_all=True) as engine:
                found.append(engine.logits(rows[0]))
        off[name] = float(((found[0] - found[1]) ** 2).mean())
    assert off["gptq"] < 0.9 * off["plain"]  # int8 products and the int8 head are in both
