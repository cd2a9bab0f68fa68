from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_llama import Checkpoint, edit_config

from minigpt_edge_export.decoder import Block, read_checkpoint
from minigpt_edge_runtime.errors import EdgeError


def test_describes_blocks_of_different_sizes(unequal: Checkpoint) -> None:
    decoder = read_checkpoint(unequal.path)
    assert decoder.blocks == (Block(96, 4, 2), Block(64, 2, 1), Block(160, 2, 2))
    assert not decoder.uniform
    assert decoder.tied
    assert decoder.rope.theta == 5000.0
    assert decoder.parameters == sum(weight.numel() for weight in unequal.model.parameters())


def test_loads_weights_by_canonical_name(unequal: Checkpoint) -> None:
    decoder = read_checkpoint(unequal.path)
    down = unequal.model.model.layers[1].mlp.down_proj.weight.detach().numpy()
    np.testing.assert_array_equal(decoder.load("blocks.1.down.weight"), down)
    assert {decoder.load(name).shape == shape for name, shape in decoder.shapes().items()} == {True}


def test_reads_shards_and_half_precision(copied: Path) -> None:
    import torch
    from safetensors.torch import save_file as save_torch

    whole = load_file(copied / "model.safetensors")
    names = sorted(whole)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        save_torch({name: torch.from_numpy(whole[name]).bfloat16() for name in part}, copied / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (copied / "model.safetensors.index.json").write_text(json.dumps(index))
    (copied / "model.safetensors").unlink()
    decoder = read_checkpoint(copied)
    expected = torch.from_numpy(whole["model.layers.1.mlp.up_proj.weight"]).bfloat16().float().numpy()
    np.testing.assert_array_equal(decoder.load("blocks.1.up.weight"), expected)
    (copied / "b.safetensors").unlink()
    with pytest.raises(EdgeError, match=r"lacks b\.safetensors"):
        read_checkpoint(copied)


def test_lists_every_wrong_tensor_at_once(copied: Path) -> None:
    weights = load_file(copied / "model.safetensors")
    del weights["model.norm.weight"], weights["model.layers.0.mlp.up_proj.weight"]
    weights["model.layers.1.mlp.down_proj.weight"] = np.zeros((64, 32), np.float32)
    weights["model.layers.7.mlp.down_proj.weight"] = np.zeros((1,), np.float32)
    save_file(weights, copied / "model.safetensors")
    with pytest.raises(EdgeError) as caught:
        read_checkpoint(copied)
    for part in (
        "missing model.norm.weight",
        "missing model.layers.0.mlp.up_proj.weight",
        "unexpected model.layers.7.mlp.down_proj.weight",
        "model.layers.1.mlp.down_proj.weight is [64, 32], not [64, 96]",
    ):
        assert part in caught.value.message


def test_a_tied_model_may_carry_its_head_again(copied: Path) -> None:
    weights = load_file(copied / "model.safetensors")
    save_file(
        {**weights, "lm_head.weight": weights["model.embed_tokens.weight"]}, copied / "model.safetensors"
    )
    assert "head.weight" not in read_checkpoint(copied).shapes()


def test_refuses_truncated_weights(copied: Path) -> None:
    path = copied / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(EdgeError, match="not a whole safetensors file"):
        read_checkpoint(copied)


def test_refuses_weights_that_are_not_numbers(copied: Path) -> None:
    weights = load_file(copied / "model.safetensors")
    weights["model.norm.weight"][3] = np.nan
    save_file(weights, copied / "model.safetensors")
    with pytest.raises(EdgeError, match=r"norm\.weight holds NaN"):
        read_checkpoint(copied).load("norm.weight")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mamba"}, "architecture 'mamba'"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}}, "yarn"),
        ({"intermediate_size": None}, "intermediate_size"),
        ({"per_layer_config": {"0": {"intermediate_size": 0}}}, "block 0"),
        ({"per_layer_config": {"1": {"num_attention_heads": 3}}}, "block 1"),
        ({"per_layer_config": {"2": {}}}, "do not exist: 2"),
    ],
)
def test_refuses_what_it_does_not_know(copied: Path, changes: dict, message: str) -> None:
    edit_config(copied, **changes)
    with pytest.raises(EdgeError, match=message) as caught:
        read_checkpoint(copied)
    if "model_type" in changes:
        assert "llama" in (caught.value.hint or "")


def test_refuses_a_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(EdgeError, match="not a directory"):
        read_checkpoint(tmp_path / "nowhere")
    with pytest.raises(EdgeError, match=r"config\.json does not exist"):
        read_checkpoint(tmp_path)


def test_older_rope_settings(copied: Path) -> None:
    edit_config(copied, rope_parameters=None, rope_theta=2500.0)
    assert read_checkpoint(copied).rope.theta == 2500.0


def testllama3_factors_are_those_of_transformers(make: Callable[..., Checkpoint]) -> None:
    rope = {
        "rope_type": "llama3", "rope_theta": 5000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
    }  # fmt: skip
    checkpoint = make([(96, 4, 2)], rope_parameters=rope)
    factors = read_checkpoint(checkpoint.path).rope.factors
    plain = [5000.0 ** -(index / 16) for index in range(0, 16, 2)]
    scaled = checkpoint.model.model.rotary_emb.inv_freq.tolist()
    assert factors is not None
    assert len({round(factor, 3) for factor in factors}) > 2
    assert all(math.isclose(p / f, s, rel_tol=1e-5) for p, f, s in zip(plain, factors, scaled, strict=True))
