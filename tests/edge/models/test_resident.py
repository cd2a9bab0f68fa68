"""Models whose blocks stay on disk: the same results, with one block in memory at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch  # noqa: TID253
from finetune_helpers import make_checkpoint
from pruning import prune_context, prune_units
from tiny_families import FAMILIES, write_family
from transformers import AutoModelForCausalLM  # noqa: TID253

from minigpt_edge.models import checkpoint
from minigpt_edge.models.archs import load_arch
from minigpt_edge.models.checkpoint import load_model, save_model, trim_embeddings
from minigpt_edge.models.resident import OnDisk, resident
from minigpt_edge.prune import streams
from minigpt_edge.prune.allocate import measure_costs
from minigpt_edge.prune.calibrate import measure_importance, score_blocks
from minigpt_edge.prune.decide import Decision
from minigpt_edge.prune.masks import MaskPruner, mask_blocks
from minigpt_edge.prune.methods.contextual import mean_l1
from minigpt_edge.prune.methods.registry import get_method
from minigpt_edge.prune.methods.taylor import unit_scores
from minigpt_edge_export.decoder import read_checkpoint
from minigpt_edge_runtime.errors import EdgeError

ROWS = torch.from_numpy(np.random.default_rng(1).integers(0, 299, (8, 48)))
METHODS = ("least_squares", "contextual", "flap")


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ROWS[:2], use_cache=False).logits  # type: ignore[no-any-return]


def in_memory(model: Any) -> int:
    """Blocks whose weights are in memory."""
    blocks = load_arch(model.config).blocks(model)
    return sum(not next(block.parameters()).is_meta for block in blocks)


@pytest.fixture(params=["llama, unequal", *FAMILIES])
def family(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    name = request.param
    if name in FAMILIES:
        return write_family(tmp_path / "model", name, {}).path
    return make_checkpoint(tmp_path / "model", unequal=True)


def test_the_whole_model_computes_as_usual(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lazy, most, load = load_model(family, lazy=True), [], OnDisk.load

    def watched(source: OnDisk, block: Any) -> None:
        load(source, block)
        most.append(in_memory(lazy))

    monkeypatch.setattr(OnDisk, "load", watched)
    torch.testing.assert_close(logits(lazy), logits(load_model(family)))
    assert most and set(most) == {1} and in_memory(lazy) == 0


@pytest.mark.whole
def test_costs_are_those_of_a_model_in_memory(family: Path, tmp_path: Path) -> None:
    plain, lazy = load_model(family), load_model(family, lazy=True, changed=tmp_path / "blocks")
    arch = load_arch(plain.config)  # type: ignore[union-attr]
    for one, other in zip(*(measure_costs(m, arch, ROWS, 0) for m in (plain, lazy)), strict=True):
        assert one.ffn == other.ffn and one.attention == other.attention
        assert all(torch.equal(*pair) for pair in zip(one.metrics(), other.metrics(), strict=True))
    for ours, theirs in zip(*(unit_scores(m, arch, ROWS) for m in (plain, lazy)), strict=True):
        assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])
    for ours, theirs in zip(*(score_blocks(m, arch, ROWS, mean_l1) for m in (plain, lazy)), strict=True):
        assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])
    assert in_memory(lazy) == 0


@pytest.mark.whole
@pytest.mark.parametrize("method", METHODS)
def test_pruning_gives_the_same_model_in_shards(family: Path, tmp_path: Path, method: str) -> None:
    found = []
    for lazy in (False, True):
        out = tmp_path / f"lazy-{lazy}"
        model: Any = load_model(family, lazy=lazy, changed=out / "blocks")
        trim_embeddings(model, range(299))
        arch = load_arch(model.config)
        sizes = [(arch.ffn_out(block).in_features, arch.kv_groups(block)) for block in arch.blocks(model)]
        wanted = Decision([width - 16 for width, _ in sizes], [max(1, groups - 1) for _, groups in sizes])
        try:
            result = prune_units(model, ROWS, wanted, method)
        except EdgeError as error:
            assert method == "flap" and "no biases" in error.message
            return
        save_model(model, family, out)
        inputs = measure_importance(model, arch, ROWS)
        found.append((result, logits(load_model(out)), read_checkpoint(out).blocks, inputs))
        assert not (out / "blocks").exists()
    (one, ours, sizes, inputs), (other, theirs, same_sizes, same_inputs) = found
    assert one.blocks == other.blocks and sizes == same_sizes
    assert torch.equal(ours, theirs)
    assert all(torch.equal(inputs[name], same_inputs[name]) for name in inputs)
    assert sorted(path.name for path in (tmp_path / "lazy-True").glob("*.safetensors*")) == [
        *(f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)),
        "model.safetensors.index.json",
    ]


@pytest.mark.whole
@pytest.mark.parametrize("method", METHODS)
def test_units_that_are_computed_again_are_the_same(
    family: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    found = []
    for kept in (2**30, 0):
        monkeypatch.setattr(streams, "KEPT_BYTES", kept)
        model: Any = load_model(family)
        arch = load_arch(model.config)
        if method == "flap" and arch.biasless:
            return
        groups = [arch.kv_groups(block) for block in arch.blocks(model)]
        prune_units(model, ROWS, Decision([32] * len(groups), groups), method)
        found.append((logits(model), measure_importance(model, arch, ROWS)))
    assert torch.equal(found[0][0], found[1][0])
    assert all(torch.equal(found[0][1][name], inputs) for name, inputs in found[1][1].items())


@pytest.mark.whole
def test_masks_too(family: Path, tmp_path: Path) -> None:
    found = []
    for lazy in (False, True):
        model: Any = load_model(family, lazy=lazy, changed=tmp_path / "blocks")
        pruner = get_method("wanda").pruner("2:4")
        assert isinstance(pruner, MaskPruner)
        result = mask_blocks(prune_context(model, ROWS, pattern="2:4", sparsity=0.5), pruner)
        save_model(model, family, tmp_path / f"lazy-{lazy}")
        found.append((result.zeros, logits(load_model(tmp_path / f"lazy-{lazy}"))))
    assert found[0][0] == found[1][0] and torch.equal(found[0][1], found[1][1])


def test_shards_load_with_stock_transformers(tmp_path: Path) -> None:
    source = write_family(tmp_path / "model", "qwen2", {}).path
    model: Any = load_model(source, lazy=True, changed=tmp_path / "blocks")
    prune_units(model, ROWS, Decision([64] * 2, [1] * 2), "least_squares")
    save_model(model, source, tmp_path / "small")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "small", dtype=torch.float32).eval()
    torch.testing.assert_close(logits(stock), logits(load_model(tmp_path / "small")), rtol=1e-4, atol=1e-4)


def test_what_is_not_kept_is_lost(tmp_path: Path) -> None:
    source = write_family(tmp_path / "model", "qwen2", {}).path
    model: Any = load_model(source, lazy=True)
    before = logits(model)
    block = load_arch({"model_type": "qwen2"}).blocks(model)[0]
    with resident(block):
        block.mlp.up_proj.weight.data.zero_()
    assert torch.equal(logits(model), before)
    with resident(block), pytest.raises(ValueError, match="for reading"):
        block.on_disk.write(block)


def test_a_block_that_does_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import load_file, save_file

    source = write_family(tmp_path / "model", "qwen2", {}).path
    weights = load_file(source / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    save_file({**weights, name: weights[name][:-1].clone()}, source / "model.safetensors", {"format": "pt"})
    monkeypatch.setattr(checkpoint, "LARGE_BYTES", 0)
    assert checkpoint.is_large(source)
    with pytest.raises(EdgeError, match="do not fit"):
        logits(load_model(source, lazy=True))
