"""Inputs dealt to blocks by their energy: the same function, and files that lose less."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch  # noqa: TID253
from finetune_helpers import make_checkpoint, make_corpus
from safetensors.torch import load_file, save_file
from tiny_families import FAMILIES, write_family

from minigpt_edge.models.archs import load_arch
from minigpt_edge.models.checkpoint import load_model, read_config
from minigpt_edge.prune.calibrate import measure_importance
from minigpt_edge.prune.context import CHECKPOINT, IMPORTANCE, PruneInputs, PruneSettings
from minigpt_edge.prune.methods.registry import pruner_of
from minigpt_edge.prune.order import deal_inputs, dealt, lies_on_grid
from minigpt_edge.prune.plan import BlockPlan, Plan, write_plan
from minigpt_edge.prune.prepare import prepare
from minigpt_edge.prune.result import write_pruned
from minigpt_edge_export.gguf.grids import GRIDS
from minigpt_edge_export.gguf.rounding import _GgmlBlocks
from minigpt_edge_export.gptq import quantize_gptq

IDS = torch.from_numpy(np.random.default_rng(1).integers(0, 399, (4, 40)))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits  # type: ignore[no-any-return]


def uneven(folder: Path, **how: Any) -> Any:
    """The model in a folder, its norms and biases made as uneven as trained ones are."""
    model: Any = load_model(folder, **how)
    noise = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() == 1 and not parameter.is_meta:
            parameter.data += torch.randn(len(parameter), generator=noise).abs()
    return model


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_whose_inputs_are_dealt_is_the_same_function(tmp_path: Path, name: str) -> None:
    folder = write_family(tmp_path / "model", name, {}).path
    model, arch = uneven(folder), load_arch(read_config(folder))
    before, importance = logits(model), measure_importance(model, arch, IDS)
    ordered = deal_inputs(model, arch, importance)
    torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-3)
    again = measure_importance(model, arch, IDS)
    for entry, squares in ordered.items():
        torch.testing.assert_close(again[entry], squares, rtol=0.05, atol=0.02 * float(squares.max()))
    entries = [f"blk.{index}.ffn_down.weight" for index in range(len(arch.blocks(model)))]
    apart = (*entries, *(entry.replace("ffn_down", "attn_output") for entry in entries))
    stream = torch.stack([squares.log() for entry, squares in ordered.items() if entry not in apart]).mean(0)
    for energy in (stream, *(ordered[entry] for entry in entries)):
        blocks = energy.view(-1, 32)
        assert (blocks[:, :-1].min(0).values >= blocks[:, 1:].max(0).values - 1e-6).all()
    assert not any(torch.equal(ordered[entry], importance[entry]) for entry in entries)


def test_blocks_that_lie_on_disk_are_changed_there(tmp_path: Path) -> None:
    folder = write_family(tmp_path / "model", "qwen2", {}).path
    arch = load_arch(read_config(folder))
    whole, lazy = load_model(folder), load_model(folder, lazy=True, changed=tmp_path / "changed")
    importance = measure_importance(whole, arch, IDS)
    one, other = (deal_inputs(model, arch, dict(importance)) for model in (whole, lazy))
    assert all(torch.equal(one[name], other[name]) for name in one)
    torch.testing.assert_close(logits(lazy), logits(whole))


def pruned(folder: Path, settings: PruneSettings, **plan: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Of what pruning writes: the first block's importance of `down`, and its gate [width, hidden]."""
    inputs = PruneInputs(folder / "base", "base", folder / "corpus", settings, **plan)
    out = folder / "pruned"
    out.mkdir()
    context = prepare(inputs, out)
    write_pruned(context, pruner_of(settings).apply(context))
    gate = load_file(out / CHECKPOINT / "model.safetensors")["model.layers.0.mlp.gate_proj.weight"]
    return load_file(out / IMPORTANCE)["blk.0.ffn_down.weight"], gate


def test_what_pruning_writes_is_dealt_but_for_masks_and_whole_blocks_on_a_grid(tmp_path: Path) -> None:
    place = {name: tmp_path / name for name in ("cut", "mask", "grid")}
    for folder in place.values():
        make_checkpoint(folder / "base")
        make_corpus(folder / "corpus")
    base = load_file(tmp_path / "cut" / "base" / "model.safetensors")
    gate = base["model.layers.0.mlp.gate_proj.weight"]

    plan = tmp_path / "plan.json"
    blocks = (BlockPlan((0, 1), tuple(range(32))), BlockPlan((0, 1), tuple(range(32))))
    write_plan(Plan("base", "least_squares", tuple(range(290)), blocks, (1, 1)), plan)
    structured = PruneSettings(0.2, "least_squares", "free", 0, 512, 64, 0, 1)
    energy, kept = pruned(place["cut"], structured, plan=plan)
    assert (energy.diff() <= 0).all()
    assert not torch.equal(kept, gate[:32])
    assert torch.equal(kept.sort(1).values.sort(0).values, gate[:32].sort(1).values.sort(0).values)

    mask = PruneSettings(0.5, "wanda", "free", 0, 512, 64, 0, 1, pattern="2:4")
    _, masked = pruned(place["mask"], mask)
    assert ((masked == gate) | (masked == 0)).all()

    grid = GRIDS["IQ4_NL"]
    for name in (name for name in base if name.endswith("up_proj.weight")):
        codes = np.random.default_rng(3).integers(0, 16, base[name].shape).astype(np.uint8)
        scales = np.full((len(codes), codes.shape[1] // 32), 0.01, dtype=np.float16)
        base[name] = torch.from_numpy(grid.decode(codes, scales))
    save_file(base, place["grid"] / "base" / "model.safetensors", {"format": "pt"})
    whole = (BlockPlan((0, 1), tuple(range(48))), BlockPlan((0, 1), tuple(range(48))))
    write_plan(Plan("base", "least_squares", tuple(range(290)), whole, (1, 1)), plan)
    _, same = pruned(place["grid"], structured, plan=plan)
    assert torch.equal(same, gate)


@pytest.mark.parametrize("kind", ["IQ4_NL", "Q2_0"])
def test_numbers_of_a_quantized_file_are_recognised(tmp_path: Path, kind: str) -> None:
    folder = write_family(tmp_path / "model", "qwen2", {}).path
    model, arch = load_model(folder), load_arch(read_config(folder))
    assert not lies_on_grid(model, arch)
    grid, up = GRIDS[kind], arch.part(arch.blocks(model)[0], "up")
    rng = np.random.default_rng(2)
    rows, columns = up.weight.shape
    codes = rng.integers(0, len(grid.levels), (rows, columns)).astype(np.uint8)
    scales = rng.uniform(0.01, 0.02, (rows, columns // grid.block)).astype(np.float16)
    up.weight.data = torch.from_numpy(grid.decode(codes, scales))
    assert lies_on_grid(model, arch)


def test_gptq_loses_less_on_inputs_that_are_dealt() -> None:
    """Inputs of very different energy, as those of trained models are."""
    rng = np.random.default_rng(0)
    energy = np.exp(rng.normal(size=256) * 1.5)
    inputs = (rng.normal(size=(4000, 256)) @ rng.normal(size=(256, 256)) / 16) * energy
    matrix = rng.normal(size=(128, 256)).astype(np.float32)
    gram = (inputs.T @ inputs / 4000).astype(np.float32)

    def loss(order: np.ndarray) -> float:
        values, inner = matrix[:, order], gram[np.ix_(order, order)]
        codes, steps = quantize_gptq(values, inner, _GgmlBlocks(GRIDS["IQ4_NL"]))
        error = GRIDS["IQ4_NL"].decode(codes, steps[:, 0].T.astype(np.float16)) - values
        return float(np.einsum("oi,ij,oj->", error, inner, error))

    order = dealt(torch.from_numpy(gram.diagonal().copy())).numpy()
    assert loss(order) < 0.9 * min(loss(np.arange(256)), loss(order[::-1]))
