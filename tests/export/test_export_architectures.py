"""Every family of models in both formats: the same logits as transformers."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_families import FAMILIES, narrow, write_family
from tiny_llama import Checkpoint, edit_config, write_reference

from minigpt_edge_export.decoder import Block, read_checkpoint
from minigpt_edge_export.gguf.layout import layout_of
from minigpt_edge_export.gguf.quantize import quantize
from minigpt_edge_export.gguf.write import write_gguf
from minigpt_edge_export.onnx.write import write_onnx
from minigpt_edge_export.targets import Precision
from minigpt_edge_export.verify import verify_logits
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.formats.gguf_header import read_header
from minigpt_edge_runtime.formats.gguf_names import gguf_name

ROWS = np.random.default_rng(1).integers(0, 399, (3, 48)).tolist()


@pytest.fixture(scope="module")
def family(
    tokenizer_json: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Checkpoint]:
    made: dict[str, Checkpoint] = {}

    def family(name: str) -> Checkpoint:
        if name not in made:
            made[name] = write_family(tmp_path_factory.mktemp("family"), name, tokenizer_json)
        return made[name]

    return family


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_are_all_found(family: Callable[[str], Checkpoint], name: str) -> None:
    checkpoint = family(name)
    decoder = read_checkpoint(checkpoint.path)
    unused = decoder.architecture.unused_positions * decoder.hidden_size
    held = sum(weight.numel() for weight in checkpoint.model.parameters())
    assert decoder.parameters == held - unused
    assert all(decoder.load(weight).shape == shape for weight, shape in decoder.shapes().items())


@pytest.mark.parametrize("name", FAMILIES)
def test_gguf_logits_are_those_of_torch(
    family: Callable[[str], Checkpoint], tmp_path: Path, name: str
) -> None:
    checkpoint, path = family(name), tmp_path / "model.gguf"
    write_gguf(read_checkpoint(checkpoint.path), path, file_type="f32")
    assert read_header(path).architecture == layout_of(read_checkpoint(checkpoint.path)).name
    write_reference(tmp_path / "reference.safetensors", checkpoint, ROWS)
    parity = verify_logits(path, tmp_path / "reference.safetensors", 1)
    assert parity.kl_mean < 3e-5
    assert parity.argmax_agreement >= 0.98  # of near ties under a float16 cache


@pytest.mark.parametrize("name", FAMILIES)
def test_onnx_logits_are_those_of_torch(
    family: Callable[[str], Checkpoint], tmp_path: Path, name: str
) -> None:
    checkpoint = family(name)
    write_onnx(read_checkpoint(checkpoint.path), tmp_path / "onnx", Precision("fp32"))
    write_reference(tmp_path / "reference.safetensors", checkpoint, ROWS)
    parity = verify_logits(tmp_path / "onnx" / "model.onnx", tmp_path / "reference.safetensors", 1)
    assert parity.kl_mean < 1e-6
    assert parity.argmax_agreement == 1.0


@pytest.mark.parametrize("name", FAMILIES)
def test_quantized_files_hold_every_matrix(
    family: Callable[[str], Checkpoint], tmp_path: Path, name: str
) -> None:
    """With an importance matrix by the checkpoint's matrices, although files join and pad them."""
    decoder = read_checkpoint(family(name).path)
    write_gguf(decoder, tmp_path / "model.gguf")
    imatrix = {}
    for weight, shape in decoder.shapes().items():
        if weight.startswith("blocks.") and len(shape) > 1:
            imatrix[gguf_name(weight)] = np.ones(shape[1], dtype=np.float32)
    held = quantize(tmp_path / "model.gguf", tmp_path / "q8.gguf", "q8_0", imatrix=imatrix, threads=1)
    assert held["Q8_0"]["tensors"] >= 2 * (4 if layout_of(decoder).joined else 6)


UNEQUAL = [
    ("qwen2", True, "deci"),
    ("qwen2, untied", True, "deci"),
    ("qwen3", True, "openelm"),
    ("qwen3, untied", False, "qwen3"),
    ("phi", False, "phi2"),
    ("gpt_neox", False, "gptneox"),
    ("gpt2", False, "gpt2"),
    ("opt", False, "gpt2"),
    ("stablelm", False, "stablelm"),
]


@pytest.mark.parametrize(("name", "heads", "architecture"), UNEQUAL)
def test_blocks_of_different_sizes(
    family: Callable[[str], Checkpoint], tmp_path: Path, name: str, heads: bool, architecture: str
) -> None:
    """What is removed in a file equals what is zero in torch; where one width has to do, MLPs are padded."""
    checkpoint = narrow(family(name), tmp_path / "narrow", heads=heads)
    decoder = read_checkpoint(checkpoint.path)
    write_reference(tmp_path / "reference.safetensors", checkpoint, ROWS)
    write_onnx(decoder, tmp_path / "onnx", Precision("fp32"))
    assert (
        verify_logits(tmp_path / "onnx" / "model.onnx", tmp_path / "reference.safetensors", 1).kl_mean < 1e-6
    )
    path = tmp_path / "model.gguf"
    write_gguf(decoder, path, file_type="f32")
    found = read_header(path)
    assert found.architecture == architecture
    assert verify_logits(path, tmp_path / "reference.safetensors", 1).kl_mean < 3e-5
    widths = [96, 64] if architecture in ("deci", "openelm") else 96
    assert found.of_architecture("feed_forward_length") == widths


@pytest.mark.parametrize("name", ["phi", "gpt2", "opt"])
def test_llama_cpp_needs_all_heads(family: Callable[[str], Checkpoint], tmp_path: Path, name: str) -> None:
    decoder = read_checkpoint(family(name).path)
    blocks = tuple(Block(block.intermediate_size, 1, 1) for block in decoder.blocks)
    with pytest.raises(EdgeError, match="lacks heads"):
        write_gguf(dataclasses.replace(decoder, blocks=blocks), tmp_path / "model.gguf")


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("opt", {"do_layer_norm_before": False}, "OPT-350m"),
        ("opt", {"word_embed_proj_dim": 32}, "OPT-350m"),
        ("phi", {"qk_layernorm": True}, "qk_layernorm"),
        ("qwen2", {"use_sliding_window": True}, "sliding window"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scaled by block"),
        ("gpt_neox", {"hidden_act": "mish"}, "activation 'mish'"),
    ],
)
def test_refuses_variants_it_does_not_know(
    family: Callable[[str], Checkpoint], tmp_path: Path, name: str, changes: dict[str, Any], message: str
) -> None:
    path = Path(shutil.copytree(family(name).path, tmp_path / "copy"))
    edit_config(path, **changes)
    with pytest.raises(EdgeError, match=message):
        read_checkpoint(path)
