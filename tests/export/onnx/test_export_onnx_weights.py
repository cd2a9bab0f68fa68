"""Quantized matrices against the operator that multiplies with them."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx
import pytest
from onnx_helpers import dequantize

from minigpt_edge_export.onnx.weights import Packed, quantize_matrix

KINDS = list(itertools.product((4, 8), (32, 64), (True, False)))
COLUMNS = (32, 72, 96, 160, 192, 200)  # one, two, three and more blocks, whole ones or not


def matrix(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_t(4, (rows, columns)) * rng.uniform(0.1, 3, (rows, 1))).astype(np.float32)


def statistics(columns: int, seed: int = 1) -> np.ndarray:
    """Mean squared inputs as calibration finds them: a few large ones."""
    return np.random.default_rng(seed).lognormal(0, 2, columns).astype(np.float32)


def product(packed: Packed, bits: int, size: int, columns: int, inputs: np.ndarray) -> np.ndarray:
    """What MatMulNBits makes of them, computing in float32."""
    import onnxruntime
    from onnx import helper, numpy_helper

    arrays = {"codes": packed.codes, "scales": packed.scales, "zero_points": packed.zero_points}
    stored = {name: array for name, array in arrays.items() if array is not None}
    node = helper.make_node(
        "MatMulNBits", ["x", *stored], ["y"], domain="com.microsoft", K=columns, N=len(packed.codes),
        bits=bits, block_size=size, accuracy_level=0,
    )  # fmt: skip
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["rows", columns])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["rows", len(packed.codes)])],
        [numpy_helper.from_array(array, name) for name, array in stored.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": inputs})[0]


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize(("bits", "size", "symmetric"), KINDS)
def test_the_operator_multiplies_with_what_the_codes_stand_for(
    bits: int, size: int, symmetric: bool, calibrated: bool
) -> None:
    for columns in COLUMNS:
        weights = matrix(17, columns)
        packed = quantize_matrix(weights, bits, size, symmetric, statistics(columns) if calibrated else None)
        blocks = -(-columns // size)
        assert packed.codes.shape == (17, blocks, size * bits // 8) and packed.codes.dtype == np.uint8
        assert packed.scales.shape == (17, blocks) and packed.scales.dtype == np.float32
        assert (packed.zero_points is None) == symmetric
        if packed.zero_points is not None:
            assert packed.zero_points.shape == (17, -(-blocks * bits // 8))
        inputs = np.random.default_rng(2).standard_normal((5, columns)).astype(np.float32)
        expected = inputs @ dequantize(packed, bits, columns).T
        np.testing.assert_allclose(product(packed, bits, size, columns, inputs), expected, atol=3e-4)


@pytest.mark.parametrize(("bits", "size", "symmetric"), KINDS)
def test_the_error_is_half_a_step_at_most(bits: int, size: int, symmetric: bool) -> None:
    for columns in COLUMNS:
        weights = matrix(17, columns)
        packed = quantize_matrix(weights, bits, size, symmetric)
        steps = np.repeat(np.abs(packed.scales), size, axis=1)[:, :columns]
        # a symmetric range has one step more on the side of its largest weight than on the other
        allowed = 1.001 if symmetric else 0.501
        assert (np.abs(dequantize(packed, bits, columns) - weights) <= allowed * steps).all()


@pytest.mark.parametrize(("bits", "size", "symmetric"), KINDS)
def test_statistics_lower_the_error_that_they_weight(bits: int, size: int, symmetric: bool) -> None:
    for columns in COLUMNS:
        weights, importance = matrix(40, columns), statistics(columns)

        def error(packed: Packed, weights: np.ndarray = weights, importance: np.ndarray = importance) -> Any:
            return (importance * (dequantize(packed, bits, weights.shape[1]) - weights) ** 2).sum()

        plain = error(quantize_matrix(weights, bits, size, symmetric))
        calibrated = error(quantize_matrix(weights, bits, size, symmetric, importance))
        assert 0 < calibrated <= plain
        if symmetric or bits == 4:  # 255 steps of the whole range leave nothing to gain
            assert calibrated < plain


@pytest.mark.parametrize(("bits", "size"), [(4, 32), (4, 64), (8, 64)])
def test_symmetric_scales_are_the_best_for_their_codes(bits: int, size: int) -> None:
    weights, importance = matrix(40, 192), statistics(192)
    packed = quantize_matrix(weights, bits, size, True, importance)

    def errors(scales: np.ndarray) -> np.ndarray:
        found = dequantize(Packed(packed.codes, scales, None), bits, 192)
        return (importance * (found - weights) ** 2).reshape(40, -1, size).sum(-1)

    best = errors(packed.scales)
    assert (best <= errors(packed.scales * np.float32(1.01))).all()
    assert (best <= errors(packed.scales * np.float32(0.99))).all()


@pytest.mark.parametrize(("bits", "size", "symmetric"), KINDS)
@pytest.mark.parametrize("importance", [None, np.zeros(96), np.full(96, 1e6), np.eye(96)[5] * 1e4])
def test_odd_weights_and_statistics_give_numbers(
    bits: int, size: int, symmetric: bool, importance: np.ndarray | None
) -> None:
    rows = [
        np.zeros(96),
        np.full(96, 0.5),
        -np.arange(96.0),
        np.eye(96)[3],
        np.full(96, 1e-9),
        matrix(1, 96)[0],
    ]
    weights = np.stack(rows).astype(np.float32)
    given = None if importance is None else importance.astype(np.float32)
    packed = quantize_matrix(weights, bits, size, symmetric, given)
    found = dequantize(packed, bits, 96)
    assert np.isfinite(found).all() and (found[0] == 0).all()
    largest = np.abs(weights).max(axis=1, keepdims=True)
    coarse = 2.0 if bits == 4 else 0.2  # of a step
    if importance is None or importance.all():
        assert (np.abs(found - weights) <= coarse * largest / 7).all()


def test_a_matrix_larger_than_a_piece_is_quantized_the_same() -> None:
    """Candidates are computed some rows at a time."""
    weights, importance = matrix(6000, 256), statistics(256)
    whole = quantize_matrix(weights, 4, 64, True, importance)
    part = quantize_matrix(weights[4000:5000], 4, 64, True, importance)
    assert (whole.codes[4000:5000] == part.codes).all()
    np.testing.assert_allclose(whole.scales[4000:5000], part.scales, rtol=1e-5)
