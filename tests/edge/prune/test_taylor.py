"""Taylor importance against plain loops over autograd's gradients, and against the loss itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch  # noqa: TID253
from finetune_helpers import make_checkpoint
from torch import Tensor  # noqa: TID253

from minigpt_edge.models.archs import load_arch
from minigpt_edge.models.checkpoint import load_model
from minigpt_edge.prune import backward
from minigpt_edge.prune.methods import taylor

HEADS_PER_GROUP, HEAD_DIM = 2, 8  # of make_checkpoint's model


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(backward, "compute_dtype", lambda: torch.float32)  # exact, to compare
    return load_model(make_checkpoint(tmp_path, unequal=True))


def window_ids(windows: int = 3, length: int = 24) -> Tensor:
    return torch.randint(0, 300, (windows, length), generator=torch.Generator().manual_seed(0))


def products(model: Any, ids: Tensor) -> list[dict[str, list[list[float]]]]:
    """|w * g| of every matrix of every block, g from one backward pass of transformers' own loss."""
    model.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
    found = [
        {
            name.split(".")[-2]: (p * p.grad).abs().tolist()
            for name, p in block.named_parameters()
            if p.dim() == 2
        }
        for block in model.model.layers
    ]
    model.zero_grad()
    return found


def by_loops(block: dict[str, list[list[float]]]) -> tuple[list[float], list[float]]:
    groups = [0.0] * (len(block["k_proj"]) // HEAD_DIM)
    for head in range(len(block["q_proj"]) // HEAD_DIM):
        rows = range(head * HEAD_DIM, (head + 1) * HEAD_DIM)
        groups[head // HEADS_PER_GROUP] += sum(sum(block["q_proj"][row]) for row in rows)
        groups[head // HEADS_PER_GROUP] += sum(line[row] for line in block["o_proj"] for row in rows)
    for group in range(len(groups)):
        for row in range(group * HEAD_DIM, (group + 1) * HEAD_DIM):
            groups[group] += sum(block["k_proj"][row]) + sum(block["v_proj"][row])
    neurons = [
        sum(block["gate_proj"][n]) + sum(block["up_proj"][n]) + sum(line[n] for line in block["down_proj"])
        for n in range(len(block["gate_proj"]))
    ]
    return groups, neurons


def test_scores_are_the_sums_over_all_coupled_weights(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backward, "MICRO_BATCH_TOKENS", 2 * 24)  # two micro-batches, the second one short
    ids = window_ids()
    expected = [by_loops(block) for block in products(model, ids)]
    seen: list[tuple[int, int]] = []
    found = taylor.unit_scores(
        model, load_arch({"model_type": "llama"}), ids, lambda *progress: seen.append(progress)
    )
    assert seen == [(1, 2), (2, 2)]
    assert [(len(groups), len(neurons)) for groups, neurons in found] == [(2, 48), (1, 32)]
    for scores, wanted in zip(found, expected, strict=True):
        for actual, plain in zip(scores, wanted, strict=True):
            assert actual.dtype == torch.float32
            assert actual.tolist() == pytest.approx(plain, rel=1e-3)


def test_the_gradient_is_the_change_of_the_loss(model: Any) -> None:
    """One matrix element's |w * g| against an explicit difference of the loss."""
    ids = window_ids()
    weight = model.model.layers[0].mlp.down_proj.weight
    with torch.no_grad():  # a neuron whose only weight is this one has no other term
        weight[:, 5] = 0
        weight[3, 5] = 0.4
        model.model.layers[0].mlp.gate_proj.weight[5] = 0
        model.model.layers[0].mlp.gate_proj.weight[5, 2] = 2.0
        model.model.layers[0].mlp.up_proj.weight[5] = 0
        model.model.layers[0].mlp.up_proj.weight[5, 2] = 2.0
    score = taylor.unit_scores(model, load_arch({"model_type": "llama"}), ids)[0][1][5]
    total = 0.0
    for linear, at in (("down_proj", (3, 5)), ("gate_proj", (5, 2)), ("up_proj", (5, 2))):
        element = getattr(model.model.layers[0].mlp, linear).weight
        value = float(element[at].detach())
        losses = []
        for moved in (value + 0.03, value - 0.03):  # the loss is float32: a smaller step drowns in rounding
            with torch.no_grad():
                element[at] = moved
                losses.append(float(model(input_ids=ids, labels=ids).loss))
        with torch.no_grad():
            element[at] = value
        total += abs(value * (losses[0] - losses[1]) / 0.06)
    assert float(score) == pytest.approx(total, rel=1e-2)


def test_the_model_stays_as_it_was(model: Any) -> None:
    model.model.norm.weight.requires_grad_(False)
    kept = model.model.layers[0].mlp.up_proj.weight.grad = torch.ones(48, 32)
    before = {name: (p.detach().clone(), p.requires_grad) for name, p in model.named_parameters()}
    taylor.unit_scores(model, load_arch({"model_type": "llama"}), window_ids())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name][0]) and parameter.requires_grad == before[name][1]
        assert parameter.grad is (kept if name == "model.layers.0.mlp.up_proj.weight" else None)
