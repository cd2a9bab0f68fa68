"""Matrices that a checkpoint also has as two factors: kept apart by ONNX, multiplied by GGUF."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx_helpers import dequantize, grams_of
from safetensors.numpy import load_file, save_file
from tiny_llama import EQUAL, UNEQUAL, Checkpoint, write_reference

from minigpt_edge_export.decoder import read_checkpoint
from minigpt_edge_export.gguf.write import write_gguf
from minigpt_edge_export.onnx.gptq import pack_matrices
from minigpt_edge_export.onnx.weights import quantize_matrix, smallest_block
from minigpt_edge_export.onnx.write import write_onnx
from minigpt_edge_export.targets import PRECISIONS
from minigpt_edge_export.verify import check, verify_logits
from minigpt_edge_export.weights import FACTORS
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.formats.onnx_header import read_onnx

ROWS = np.random.default_rng(1).integers(0, 399, (3, 48)).tolist()
# of blocks 0 and 1: one of three that read the same, both of two, one alone
RANKS = {"0.self_attn.k_proj": 8, "0.mlp.gate_proj": 12, "0.mlp.up_proj": 20, "1.mlp.down_proj": 9}


@pytest.fixture
def factored(make: Callable[..., Checkpoint], tmp_path: Path) -> Callable[..., Checkpoint]:
    """factored(blocks, ranks, **config): a checkpoint with matrices of low rank and their factors."""

    def factored(blocks: Any, ranks: dict[str, int] = RANKS, **changes: Any) -> Checkpoint:
        import copy

        import torch

        dense = make(blocks, **changes)
        path = Path(shutil.copytree(dense.path, tmp_path / "factored"))
        model, weights = copy.deepcopy(dense.model), load_file(path / "model.safetensors")
        factors: dict[str, np.ndarray] = {}
        for name, rank in ranks.items():
            module = f"model.layers.{name}"
            u, s, v = np.linalg.svd(weights[f"{module}.weight"], full_matrices=False)
            b, a = (u * s)[:, :rank].copy(), v[:rank].copy()
            factors |= {f"{module}.b": b, f"{module}.a": a}
            weights[f"{module}.weight"] = b @ a
            model.get_submodule(module).weight.data = torch.from_numpy(b @ a)
        save_file(weights, path / "model.safetensors")
        save_file(factors, path / FACTORS)
        return Checkpoint(path, model)

    return factored


def gate(model: Path, kind: str, checkpoint: Checkpoint) -> float:
    """The parity check, which raises; the mean KL divergence."""
    folder = model.parent.parent
    write_reference(folder / "reference.safetensors", checkpoint, ROWS)
    logits, _ = check(
        model,
        kind=kind,
        reference=folder / "reference.safetensors",
        evidence=folder / "parity.json",
        threads=1,
    )
    return logits.kl_mean


def both(checkpoint: Checkpoint, folder: Path, name: str, **options: Any) -> tuple[Path, Path]:
    """model.onnx of a checkpoint, and that of the same weights without factors."""
    plain = Path(shutil.copytree(checkpoint.path, folder / "plain"))
    (plain / FACTORS).unlink()
    for path, out in ((checkpoint.path, "small"), (plain, "large")):
        write_onnx(read_checkpoint(path), folder / out / "onnx", PRECISIONS[name], **options)
    return folder / "small" / "onnx" / "model.onnx", folder / "large" / "onnx" / "model.onnx"


def saved(ranks: dict[str, int], shapes: dict[str, tuple[int, int]]) -> int:
    return sum(m * n - ranks[name] * (m + n) for name, (m, n) in shapes.items())


SHAPES = {
    "0.self_attn.k_proj": (32, 64),
    "0.mlp.gate_proj": (96, 64),
    "0.mlp.up_proj": (96, 64),
    "1.mlp.down_proj": (64, 96),
}


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("name", ["fp32", "fp16", "int8"])
def test_onnx_runs_two_small_matrices(
    factored: Callable[..., Checkpoint], tmp_path: Path, name: str, biased: bool
) -> None:
    checkpoint = factored(EQUAL, attention_bias=biased, mlp_bias=biased)
    small, large = both(checkpoint, tmp_path, name)
    assert gate(small, name, checkpoint) < {"fp32": 1e-6, "fp16": 1e-4, "int8": 0.01}[name]
    fewer = saved(RANKS, SHAPES)
    assert fewer == 32 * 64 - 8 * 96 + 2 * 96 * 64 - 32 * 160 + 64 * 96 - 9 * 160
    less = read_onnx(large).weight_bytes - read_onnx(small).weight_bytes
    if name == "int8":
        assert 0.5 * fewer < less < fewer * 1.1  # rows of a factor are padded to whole blocks
    else:
        assert less == fewer * (4 if name == "fp32" else 2)
    assert (
        small.with_name("model.onnx.data").stat().st_size < large.with_name("model.onnx.data").stat().st_size
    )
    dense = read_checkpoint(checkpoint.path).parameters
    assert read_onnx(large).fact("parameters") - read_onnx(small).fact("parameters") == fewer
    assert read_onnx(large).fact("parameters") == dense


@pytest.mark.parametrize("blocks", [EQUAL, UNEQUAL])
def test_int4_chooses_both_factors_by_what_they_read(
    factored: Callable[..., Checkpoint], tmp_path: Path, blocks: Any
) -> None:
    """GPTQ has the Gram matrix of the values between the factors, and is nearer with it than rounding."""
    ranks = {"0.mlp.gate_proj": 24, "0.mlp.up_proj": 24, "1.mlp.down_proj": 24}
    checkpoint = factored(blocks, ranks)
    decoder, precision = read_checkpoint(checkpoint.path), PRECISIONS["int4"]
    grams = grams_of(checkpoint, np.random.default_rng(2).integers(0, 399, (30, 60)).tolist())
    packed = pack_matrices(decoder, precision, grams)
    pairs = {name[:-2] for name in packed if name.endswith((".a", ".b"))}
    assert pairs == {"blocks.0.gate", "blocks.0.up", "blocks.1.down"} and len(packed) == len(grams) + 3
    (plain := Path(shutil.copytree(checkpoint.path, tmp_path / "whole")) / FACTORS).unlink()
    whole = pack_matrices(read_checkpoint(plain.parent), precision, grams)
    small, large = both(checkpoint, tmp_path, "int4", packed={**whole, **packed})
    assert read_onnx(small).weight_bytes < read_onnx(large).weight_bytes
    rounded = tmp_path / "rounded" / "onnx"
    write_onnx(decoder, rounded, PRECISIONS["int4"])
    write_reference(tmp_path / "reference.safetensors", checkpoint, ROWS)
    errors = [
        verify_logits(model, tmp_path / "reference.safetensors", 1).kl_mean
        for model in (small, rounded / "model.onnx", large)
    ]
    assert errors[0] < 0.9 * errors[1] and errors[0] < 1.3 * errors[2]


def test_gguf_holds_the_product(factored: Callable[..., Checkpoint], tmp_path: Path) -> None:
    checkpoint = factored(EQUAL)
    (tmp_path / "gguf").mkdir()
    model = tmp_path / "gguf" / "model.gguf"
    write_gguf(read_checkpoint(checkpoint.path), model, file_type="f32")
    assert gate(model, "f32", checkpoint) < 1e-4  # its cache is float16
    (checkpoint.path / FACTORS).unlink()
    write_gguf(read_checkpoint(checkpoint.path), tmp_path / "plain.gguf", file_type="f32")
    assert model.read_bytes() == (tmp_path / "plain.gguf").read_bytes()


def test_factors_that_are_no_smaller_than_their_product_are_left_out(
    factored: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    """64 x 96: 38 columns of both hold 6,080 weights, 39 hold 6,240, the product 6,144."""
    decoder = read_checkpoint(factored(EQUAL, {"0.mlp.up_proj": 38, "1.mlp.up_proj": 39}).path)
    assert decoder.rank("blocks.0.up.weight") == 38 and decoder.rank("blocks.1.up.weight") is None
    b, a = decoder.factors("blocks.0.up.weight") or ()
    assert b.shape == (96, 38) and a.shape == (38, 64)
    assert decoder.factors("blocks.1.up.weight") is None
    assert decoder.factors("blocks.0.gate.weight") is None
    assert decoder.parameters - decoder.factored_parameters == 6144 - 6080


def test_factors_of_other_weights_are_refused(factored: Callable[..., Checkpoint], tmp_path: Path) -> None:
    checkpoint = factored(EQUAL)
    weights = load_file(checkpoint.path / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][3, 5] += 0.01  # as training would
    save_file(weights, checkpoint.path / "model.safetensors")
    with pytest.raises(EdgeError, match="blocks.0.up.weight's factors"):
        write_onnx(read_checkpoint(checkpoint.path), tmp_path / "onnx", PRECISIONS["fp32"])
    assert not (tmp_path / "onnx").exists()


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        ("model.layers.0.mlp.up_proj.b", None, "missing model.layers.0.mlp.up_proj.b"),
        ("model.layers.0.mlp.up_proj.a", (12, 60), r"up_proj.a is \[12, 60\], not \[12, 64\]"),
        ("model.layers.0.mlp.up_proj.b", (96, 11), r"up_proj.b is \[96, 11\], not \[96, 20\]"),
        ("model.layers.7.mlp.up_proj.a", (4, 64), "unexpected model.layers.7.mlp.up_proj.a"),
        ("model.embed_tokens.a", (4, 64), "unexpected model.embed_tokens.a"),
        ("model.layers.0.mlp.up_proj.a", (), "up_proj"),
    ],
)
def test_factors_that_do_not_fit_are_named(
    factored: Callable[..., Checkpoint], name: str, shape: tuple[int, ...] | None, reason: str
) -> None:
    path = factored(EQUAL).path
    factors = load_file(path / FACTORS)
    factors.pop(name, None)
    if shape is not None:
        factors[name] = np.zeros(shape, dtype=np.float32)
    save_file(factors, path / FACTORS)
    with pytest.raises(EdgeError, match=reason):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("columns", "block_size", "bits", "best"),
    [(576, 64, 8, 64), (57, 128, 4, 64), (5, 128, 4, 32), (128, 128, 4, 128), (130, 128, 4, 32)],
)
def test_blocks_of_a_factor_waste_little(columns: int, block_size: int, bits: int, best: int) -> None:
    """By the bytes that quantizing really gives."""
    matrix = np.random.default_rng(0).normal(size=(4, columns)).astype(np.float32)
    sizes = {}
    for size in (32, 64, 128):
        if size <= block_size:
            packed = quantize_matrix(matrix, bits, size, True)
            np.testing.assert_allclose(dequantize(packed, bits, columns), matrix, atol=0.5)
            sizes[size] = packed.codes.nbytes + packed.scales.nbytes
    assert smallest_block(columns, block_size, bits) == best == min(sizes, key=lambda size: sizes[size])
