"""A file's matrices rounded by GPTQ: against llama.cpp's quantizer, on the inputs that both were told of."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ggml_decode import quantized_tensors
from gguf import GGUFReader, dequantize
from tiny_families import write_family
from tiny_llama import UNEQUAL, Checkpoint

from minigpt_edge_export.decoder import Decoder, read_checkpoint
from minigpt_edge_export.gguf.grids import GPTQ_TYPES
from minigpt_edge_export.gguf.layout import layout_of, load_tensor, tensors_of
from minigpt_edge_export.gguf.quantize import expected_types, quantize
from minigpt_edge_export.gguf.rounding import Rounding
from minigpt_edge_export.gguf.write import write_gguf
from minigpt_edge_runtime.engines.open import open_engine
from minigpt_edge_runtime.formats.gguf_names import gguf_name


def made_up_grams(decoder: Decoder) -> dict[str, np.ndarray]:
    """Gram matrices of inputs that a few directions dominate, of every matrix of the blocks."""
    rng, found = np.random.default_rng(0), {}
    for name, shape in decoder.shapes().items():
        if name.startswith("blocks.") and len(shape) == 2:
            mixing = rng.normal(size=(shape[1], shape[1])) * rng.exponential(1, shape[1])[:, None]
            inputs = rng.normal(size=(2000, shape[1])) @ mixing
            found[name] = (inputs.T @ inputs / len(inputs)).astype(np.float32)
    return found


def files(decoder: Decoder, kind: str, folder: Path, grams: dict[str, np.ndarray]) -> tuple[Path, Path]:
    """A model quantized by llama.cpp, with the importance matrix of the same inputs, and rounded by GPTQ."""
    source, usual, rounded = (folder / f"{name}.gguf" for name in ("source", "usual", "rounded"))
    write_gguf(decoder, source)
    imatrix = {gguf_name(name): np.ascontiguousarray(np.diag(gram)) for name, gram in grams.items()}
    quantize(source, usual, kind, imatrix=imatrix, threads=1)
    shutil.copyfile(usual, rounded)
    types = expected_types(decoder, kind)
    rounding = Rounding(decoder, {name: {own} for name, own in types.items()})
    assert rounding.left
    for index in reversed(range(len(decoder.blocks))):
        rounding.add({n: gram for n, gram in grams.items() if n.startswith(f"blocks.{index}.")})
    assert not rounding.left
    rounding.improve(rounded)
    return usual, rounded


def errors(decoder: Decoder, file: Path, grams: dict[str, np.ndarray]) -> dict[str, float]:
    """Of each tensor of a GPTQ type: the squared error of what the matrices in it make of the inputs."""
    layout = layout_of(decoder)
    contents, found = tensors_of(decoder, layout), {}
    for tensor, held in quantized_tensors(file).values():
        if tensor.type in GPTQ_TYPES and tensor.name.startswith("blk."):
            values = load_tensor(decoder, layout, tensor.name, contents[tensor.name])
            off, start, error = held - values, 0, 0.0
            for part in contents[tensor.name].parts:
                rows, size = decoder.shapes()[part]
                own = off[start : start + rows, :size]
                error, start = error + float(np.einsum("ij,jk,ik->", own, grams[part], own)), start + rows
            found[tensor.name] = error
    return found


@pytest.mark.parametrize("kind", ["q2_0", "q4_0", "iq4_nl", "q5_0"])
def test_outputs_change_less_than_by_llama_cpp(
    make: Callable[..., Checkpoint], tmp_path: Path, kind: str
) -> None:
    decoder = read_checkpoint(make(UNEQUAL).path)
    grams = made_up_grams(decoder)
    usual, rounded = (errors(decoder, file, grams) for file in files(decoder, kind, tmp_path, grams))
    assert len(usual) == 3 * 7
    assert all(rounded[name] < 0.8 * usual[name] for name in usual)


@pytest.mark.parametrize("family", ["gpt2", "phi", "opt", "gpt_neox", "stablelm"])
def test_joined_and_padded_matrices_are_rounded_part_by_part(
    tokenizer_json: dict[str, object], tmp_path: Path, family: str
) -> None:
    decoder = read_checkpoint(write_family(tmp_path / "checkpoint", family, tokenizer_json).path)
    grams = made_up_grams(decoder)
    usual, rounded = files(decoder, "q4_0", tmp_path, grams)
    before, after = errors(decoder, usual, grams), errors(decoder, rounded, grams)
    assert before and all(after[name] < 0.8 * before[name] for name in before)
    with open_engine(rounded, 32, 1, logits_all=True) as engine:
        assert np.isfinite(engine.logits([1, 5, 9])).all()


def test_zeros_of_a_mask_stay_zeros(make: Callable[..., Checkpoint], tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    checkpoint = Path(shutil.copytree(make(UNEQUAL).path, tmp_path / "checkpoint"))
    weights = load_file(checkpoint / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight"
    rows, columns = weights[name].shape
    half = np.random.default_rng(3).random((rows, columns // 4, 4)).argsort(-1).reshape(rows, columns) < 2
    weights[name] = weights[name] * half
    save_file(weights, checkpoint / "model.safetensors")
    decoder = read_checkpoint(checkpoint)
    grams = made_up_grams(decoder)
    usual, rounded = files(decoder, "q4_0", tmp_path, grams)
    found = {tensor.name: tensor for tensor in GGUFReader(rounded).tensors}["blk.0.ffn_down.weight"]
    assert not dequantize(found.data, found.tensor_type)[~half].any()
    before, after = errors(decoder, usual, grams), errors(decoder, rounded, grams)
    assert after["blk.0.ffn_down.weight"] < 0.9 * before["blk.0.ffn_down.weight"]


def test_inputs_that_never_came_do_no_harm(make: Callable[..., Checkpoint], tmp_path: Path) -> None:
    decoder = read_checkpoint(make(UNEQUAL).path)
    grams = made_up_grams(decoder)
    for gram in grams.values():
        gram[:, 3:9] = gram[3:9] = 0
    grams["blocks.1.up.weight"][:] = 0
    _, rounded = files(decoder, "iq4_nl", tmp_path, grams)
    layout = layout_of(decoder)
    contents = tensors_of(decoder, layout)
    for tensor in GGUFReader(rounded).tensors:
        if tensor.tensor_type.name == "IQ4_NL":
            values = load_tensor(decoder, layout, tensor.name, contents[tensor.name])
            off = np.abs(dequantize(tensor.data, tensor.tensor_type) - values)
            assert off.max() < 0.5 * np.abs(values).max()
