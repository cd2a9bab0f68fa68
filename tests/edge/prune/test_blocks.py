"""Dropping blocks against brute force with transformers' own forward and a plain least-squares solver."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch  # noqa: TID253
from finetune_helpers import make_checkpoint
from torch import Tensor  # noqa: TID253

from minigpt_edge.models.archs import load_arch
from minigpt_edge.models.checkpoint import load_model, read_config, save_model
from minigpt_edge.prune.methods.blocks import blocks_for, drop_blocks
from minigpt_edge.prune.refit import RIDGES
from minigpt_edge_runtime.errors import EdgeError

BLOCKS = 5
WINDOWS, LENGTH, HELD_OUT = 40, 24, 6  # 15 % of the windows are held out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model whose blocks matter, each in another measure, and that is sure of what it says."""
    path = tmp_path_factory.mktemp("blocks")
    checkpoint = make_checkpoint(path / "plain", num_hidden_layers=BLOCKS, tie_word_embeddings=False)
    model: Any = load_model(checkpoint)
    with torch.no_grad():
        model.model.embed_tokens.weight *= 20
        model.lm_head.weight *= 20
        for block, scale in zip(model.model.layers, (12, 8, 10, 5, 15), strict=True):
            scale_outputs(block, scale)
    save_model(model, path / "plain", path / "model")
    return path / "model"


def scale_outputs(block: Any, scale: float) -> None:
    with torch.no_grad():
        block.self_attn.o_proj.weight *= scale
        block.mlp.down_proj.weight *= 3 * scale


def written_by(model: Any) -> Tensor:
    """Texts that a model predicts well, since they are its own; int64 [WINDOWS, LENGTH]."""
    torch.manual_seed(0)
    ids = torch.randint(0, 300, (WINDOWS, 1))
    for _ in range(LENGTH - 1):
        with torch.no_grad():
            logits = model(ids, use_cache=False).logits[:, -1]
        ids = torch.cat((ids, torch.multinomial(logits.softmax(-1), 1)), 1)
    return ids


@pytest.fixture(scope="module")
def windows(folder: Path) -> Tensor:
    return written_by(load_model(folder))


def without(model: Any, gone: Sequence[int]) -> Any:
    """A copy of a model that lacks some blocks."""
    small = copy.deepcopy(model)
    small.model.layers = torch.nn.ModuleList(
        block for index, block in enumerate(small.model.layers) if index not in gone
    )
    small.config.num_hidden_layers = len(small.model.layers)
    return small


def loss(model: Any, ids: Tensor) -> float:
    with torch.no_grad():
        return float(model(input_ids=ids, labels=ids, use_cache=False).loss)


def test_each_time_the_block_that_is_missed_least_goes(folder: Path, windows: Tensor) -> None:
    dense = load_model(folder)
    held_out = windows[:HELD_OUT]
    gone: list[int] = []
    expected = [loss(dense, held_out)]
    for _ in range(3):
        left = [index for index in range(BLOCKS) if index not in gone]
        trials = {index: loss(without(dense, [*gone, index]), held_out) for index in left}
        gone.append(min(trials, key=trials.__getitem__))
        expected.append(min(trials.values()))
    model, seen = load_model(folder), []
    result = drop_blocks(
        model, load_arch({"model_type": "llama"}), windows, 3, on_step=lambda *step: seen.append(step)
    )
    assert result.removed == gone
    assert result.losses == pytest.approx(expected, abs=0.02)  # bfloat16
    assert result.loss <= result.losses[-1]
    assert seen == [(done, 5 + 4 + 3 + BLOCKS) for done in range(1, 18)]
    left = [index for index in range(BLOCKS) if index not in gone]
    refitted = {f"model.layers.{left.index(index)}.mlp.down_proj.weight" for index in result.refitted}
    for name, tensor in without(dense, gone).state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor) is (name not in refitted), name


def inputs_of(model: Any, module: Any, ids: Tensor) -> Tensor:
    """What enters a module [tokens, width], float64."""
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    with torch.no_grad():
        model.model(input_ids=ids, use_cache=False)
    handle.remove()
    return seen[0].flatten(0, 1).double()


def solve(x: Tensor, y: Tensor, old: Tensor, ridge: float) -> Tensor:
    """argmin_V mean |y - x V|^2 + ridge * sum_j mean x_j^2 |V_j - old_j|^2, as one least-squares problem."""
    pull = torch.diag((ridge * x.square().mean(0)).sqrt())
    left = torch.cat((x / len(x) ** 0.5, pull))
    return torch.linalg.lstsq(left, torch.cat((y / len(y) ** 0.5, pull @ old))).solution


@pytest.mark.parametrize("first", [False, True])
def test_beside_the_gap_is_the_least_squares_solution(folder: Path, first: bool) -> None:
    """The block before the gap gives what came after it; behind a gap at the beginning, the next does."""
    dense: Any = load_model(folder)
    if first:
        scale_outputs(dense.model.layers[0], 0.25)
    windows = written_by(dense)
    model = copy.deepcopy(dense)
    result = drop_blocks(model, load_arch({"model_type": "llama"}), windows, 1)
    (gone,) = result.removed
    assert (gone == 0) is first
    refitted = 1 if first else gone - 1
    assert result.tried == result.refitted == [refitted]
    assert result.loss < result.losses[1]
    small = without(dense, [gone])
    held_out = HELD_OUT * LENGTH
    assert loss(model, windows[:HELD_OUT]) == pytest.approx(result.loss, abs=0.02)
    at = refitted - (1 if first else 0)  # in the smaller model
    block = small.model.layers[at]
    x = inputs_of(small, block.mlp.down_proj, windows)
    wanted = inputs_of(dense, [*dense.model.layers, dense.model.norm][max(gone, 1) + 1], windows)
    y = wanted - inputs_of(small, block.post_attention_layernorm, windows)
    old = block.mlp.down_proj.weight.detach().t().double()
    fits = [solve(x[held_out:], y[held_out:], old, ridge) for ridge in RIDGES]
    best = min(fits, key=lambda fit: float((y[:held_out] - x[:held_out] @ fit).square().sum()))
    found = model.model.layers[at].mlp.down_proj.weight.detach().t().double()
    assert float((found - best).norm() / best.norm()) < 0.03  # bfloat16 activations
    assert float((found - old).norm() / best.norm()) > 0.1
    untouched = small.state_dict()
    for name, tensor in model.state_dict().items():
        assert name == f"model.layers.{at}.mlp.down_proj.weight" or torch.equal(tensor, untouched[name])


def test_a_refit_that_does_not_help_is_not_used(folder: Path) -> None:
    model: Any = load_model(folder)
    small = without(model, [3])
    windows = written_by(small)
    scale_outputs(model.model.layers[3], 5)  # to come closer to the dense model is no use here
    result = drop_blocks(model, load_arch({"model_type": "llama"}), windows, 1)
    assert result.removed == [3] and result.tried == [2] and result.refitted == []
    assert result.loss == result.losses[1]
    for name, tensor in small.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_what_is_left_loads_with_transformers_and_generates(
    folder: Path, windows: Tensor, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    model: Any = load_model(folder)
    result = drop_blocks(model, load_arch({"model_type": "llama"}), windows, 2)
    save_model(model, folder, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["num_hidden_layers"] == 3
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert len(again.model.layers) == 3
    ids = windows[:2]
    with torch.no_grad():
        assert torch.allclose(again(ids).logits, model(ids, use_cache=False).logits, atol=1e-4)
    cached, plain = (
        m.generate(ids[:, :8], max_new_tokens=8, do_sample=False, use_cache=cache, pad_token_id=1)
        for m, cache in ((model, True), (again, False))
    )
    assert torch.equal(cached, plain)
    assert len(result.removed) == 2
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()  # it can be trained as it is
    assert all(p.grad is not None for p in model.parameters())


def test_the_number_of_blocks_comes_closest_to_the_parameters(folder: Path) -> None:
    arch, config = load_arch({"model_type": "llama"}), read_config(folder)
    block: Any = arch.blocks(load_model(folder))[0]
    size = sum(p.numel() for p in block.parameters())
    for parameters, count in ((0, 0), (0.4 * size, 0), (1.6 * size, 2), (3 * size, 3), (99 * size, 4)):
        assert blocks_for(arch, config, int(parameters)) == count


def test_one_block_has_to_stay(folder: Path, windows: Tensor) -> None:
    with pytest.raises(EdgeError, match="at least one"):
        drop_blocks(load_model(folder), load_arch({"model_type": "llama"}), windows, BLOCKS)
