"""Scores, refit, allocation and the block pass, each against its definition on small tensors."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch  # noqa: TID253
from pruning import prune_units
from tiny_build import write_corpus, write_model
from torch import Tensor  # noqa: TID253

from minigpt_edge.models.archs import load_arch
from minigpt_edge.models.checkpoint import load_model, save_model
from minigpt_edge.prune.allocate import Costs, Prices, allocate, global_plan, measure_costs, threshold_plan
from minigpt_edge.prune.calibrate import score_blocks
from minigpt_edge.prune.decide import Decision
from minigpt_edge.prune.methods import contextual, flap, least_squares, magnitude, wanda
from minigpt_edge.prune.methods.registry import METHODS, get_method
from minigpt_edge.prune.moments import Means, Moments
from minigpt_edge.prune.plan import BlockPlan, from_ranges, to_ranges
from minigpt_edge.prune.refit import DAMPING, RIDGES, Refitted, best_ridge, output_error, refit
from minigpt_edge.prune.scores import UnitStatistics
from minigpt_edge_runtime.errors import EdgeError, UsageError


def samples(units: int = 12, outputs: int = 5, tokens: int = 400) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(units, units, generator=generator)
    x = torch.randn(tokens, units, generator=generator) @ mixing
    return x, torch.randn(units, outputs, generator=generator)


def statistics(x: Tensor, weight: Tensor, group: int = 1) -> UnitStatistics:
    gram = x.t() @ x / len(x)
    means = x.square().mean(0), x.mean(0), x.abs().mean(0)
    return UnitStatistics(weight, *means, gram, gram @ weight, group=group)


def test_refit_is_least_squares_without_ridge() -> None:
    x, weight = samples()
    y = x @ weight
    kept = torch.tensor([0, 2, 3, 7, 8, 11])
    s = statistics(x, weight)
    fitted = refit(s.gram[kept][:, kept], s.cross[kept], weight[kept], 1e-9)
    expected = torch.linalg.lstsq(x[:, kept].double(), y.double()).solution
    assert torch.allclose(fitted.double(), expected, atol=1e-3)


def test_a_strong_ridge_leaves_the_weights_as_they_were() -> None:
    x, weight = samples()
    s = statistics(x, weight)
    kept = torch.arange(6)
    fitted = refit(s.gram[kept][:, kept], s.cross[kept], weight[kept], 1e6)
    assert torch.allclose(fitted, weight[kept], atol=1e-3)


@pytest.mark.parametrize("noise", [0.01, 0.1, 1.0])
def test_random_directions_choose_the_ridge_that_all_outputs_do(noise: float) -> None:
    x, weight = samples(units=40, outputs=700, tokens=120)
    generator = torch.Generator().manual_seed(1)
    y = x @ (weight + 0.1 * torch.randn(weight.shape, generator=generator))
    y += noise * x.std() * torch.randn(y.shape, generator=generator)
    fit, held = x[:80], x[80:]
    gram, cross = fit.t() @ fit / 80, fit.t() @ y[:80] / 80
    held_gram, held_cross = held.t() @ held / 40, held.t() @ y[80:] / 40
    errors = [output_error(held_gram, held_cross, 0.0, refit(gram, cross, weight, r)) for r in RIDGES]
    assert best_ridge(gram, cross, weight, held_gram, held_cross) == RIDGES[errors.index(min(errors))]


@pytest.mark.parametrize("group", [1, 3])
def test_removal_cost_is_the_rise_of_the_refitted_error(group: int) -> None:
    x, weight = samples()
    s = statistics(x, weight, group)
    scale = s.gram.diagonal().rsqrt()
    unit = s.gram * scale[:, None] * scale + DAMPING * torch.eye(len(scale))  # the ridge that the method adds
    gram = unit / scale[:, None] / scale

    def error(kept: list[int]) -> float:
        fitted = torch.linalg.solve(gram[kept][:, kept], s.cross[kept])
        return -float((s.cross[kept] * fitted).sum())

    everything = list(range(12))
    expected = [
        error([u for u in everything if u // group != removed]) - error(everything)
        for removed in range(12 // group)
    ]
    assert Refitted.of(s.gram, s.cross, None).costs(group).tolist() == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("gone", [[0], [7, 2, 11], [3, 4, 5, 6, 8]])
def test_going_without_units_is_a_fit_made_anew(gone: list[int]) -> None:
    x, weight = samples()
    s = statistics(x, weight)
    outputs = torch.randn(weight.shape[1], weight.shape[1])
    metric = outputs @ outputs.t()
    left = Refitted.of(s.gram, s.cross, metric).without(torch.tensor(gone))
    kept = [unit for unit in range(12) if unit not in gone]
    anew = Refitted.of(s.gram[kept][:, kept], s.cross[kept], metric)
    assert left.units.tolist() == kept
    for name in ("inverse", "fitted", "weighted", "scale"):
        assert torch.allclose(getattr(left, name), getattr(anew, name), rtol=1e-3, atol=1e-4), name
    assert left.explained(s.cross) == pytest.approx(anew.explained(s.cross[kept]), rel=1e-4)
    assert torch.allclose(left.costs(), anew.costs(), rtol=1e-3)


def test_units_are_chosen_in_rounds() -> None:
    """Two that stand in for each other do not both go, though each alone would cost nothing."""
    x, weight = samples()
    x[:, 1] = x[:, 0]
    s = statistics(x, weight)
    for keep in (11, 8, 4):
        kept = least_squares.rounds(s, keep).tolist()
        assert len(kept) == keep and kept == sorted(kept)
    assert len({0, 1} & set(least_squares.rounds(s, 8).tolist())) == 1


def test_scores_follow_their_papers() -> None:
    x, weight = samples()
    s = statistics(x, weight)
    assert torch.allclose(contextual.scores(s), x.abs().mean(0) / x.abs().mean(), rtol=1e-4)
    norms = x.norm(dim=0) / len(x) ** 0.5
    assert torch.allclose(wanda.scores(s), weight.abs().mean(1) * norms, rtol=1e-4)
    with pytest.raises(UsageError, match="least_squares|unknown method"):
        get_method("nope")


def test_flap_is_variance_times_norm_and_its_bias_the_mean_that_goes() -> None:
    x, weight = samples()
    x = x + torch.arange(12) / 4
    s = statistics(x, weight)
    wifv = torch.stack([x[:, j].var(correction=0) * weight[j].norm() ** 2 for j in range(12)])
    expected = (wifv - wifv.mean()) / wifv.std()
    assert torch.allclose(flap.scores(s), expected, atol=1e-4)
    gone = torch.tensor([1, 5, 6])
    expected = torch.stack([x[:, j].mean() * weight[j] for j in gone.tolist()]).sum(0)
    assert torch.allclose(s.mean_output(gone), expected, atol=1e-4)


def test_magnitude_goes_by_size() -> None:
    x, weight = samples()
    assert torch.allclose(magnitude.scores(statistics(x, weight)), weight.square().sum(1).sqrt())


def test_one_threshold_for_all_blocks_keeps_what_is_above_it() -> None:
    scores = [
        (torch.tensor([0.5, 0.1]), torch.arange(64) / 64),
        (torch.tensor([0.0, 0.2]), torch.arange(64) / 640),
    ]
    first, second = threshold_plan(scores, 0.3, 8)
    assert first.kv_groups == (0,) and second.kv_groups == (1,)  # one group always stays
    assert first.neurons == tuple(range(16, 64))  # 44 are above; widths are rounded up to eights
    assert second.neurons == tuple(range(56, 64))  # none is above, the narrowest width stays
    plans = global_plan(scores, neuron=10, group=100, remove=700, multiple=8)
    gone = sum(10 * (64 - len(p.neurons)) + 100 * (2 - len(p.kv_groups)) for p in plans)
    assert 500 <= gone <= 700
    with pytest.raises(EdgeError, match="so much"):
        global_plan(scores, neuron=10, group=100, remove=5000, multiple=8)


def test_moments_are_the_sums() -> None:
    x = torch.randn(700, 600).bfloat16()
    y = torch.randn(700, 8)
    moments = Moments.zeros(600, 8)
    moments.add(x[:300], y[:300])
    moments.add(x[300:], y[300:])
    gram, cross, energy = moments.mean()
    wide = x.double()
    assert torch.allclose(gram.double(), wide.t() @ wide / 700, atol=1e-4)
    assert torch.allclose(cross.double(), wide.t() @ y.double() / 700, atol=1e-2)  # y is rounded to bfloat16
    assert energy == pytest.approx(float(y.square().sum()) / 700, rel=1e-4)
    means = Means.of(x.view(7, 100, 600).split(3))
    assert torch.allclose(means.energy.double(), wide.square().mean(0), atol=1e-5)
    assert torch.allclose(means.mean.double(), wide.mean(0), atol=1e-5)
    assert torch.allclose(means.mean_abs.double(), wide.abs().mean(0), atol=1e-5)


def test_moments_drawn_are_those_of_a_mixed_target() -> None:
    x, weight = samples()
    y = x @ weight + torch.randn(len(x), 5, generator=torch.Generator().manual_seed(1))
    moments, expected = Moments.zeros(12, 5), Moments.zeros(12, 5)
    moments.add(x, y)
    expected.add(x, 0.3 * y + 0.7 * x @ weight)
    moments.draw(weight, 0.3)
    for found, wanted in zip(moments.mean(), expected.mean(), strict=True):
        assert torch.allclose(torch.as_tensor(found), torch.as_tensor(wanted), rtol=1e-4, atol=1e-4)


def test_allocation_takes_the_cheapest_and_meets_the_budget() -> None:
    widths = [128, 96, 64, 32]
    metric = torch.eye(2)
    cheap = Costs(widths, [0.0, 0.1, 0.2, 0.3], [0.0, 0.01], (metric, metric))
    dear = Costs(widths, [0.0, 1.0, 2.0, 3.0], [0.0, 5.0], (metric, metric))
    sizes = allocate([cheap, dear], Prices(10, 640), remove=1280, min_width=32)
    assert sizes.widths == [64, 128]
    assert sizes.kv_groups == [1, 2]
    with pytest.raises(EdgeError, match="can be removed"):
        allocate([cheap, dear], Prices(10, 640), remove=10_000, min_width=32)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prune")
    write_corpus(folder / "corpus", documents=20)
    return write_model(folder / "model", folder / "corpus", blocks=2)


def logits(model: torch.nn.Module, ids: Tensor) -> Tensor:
    with torch.inference_mode():
        return model(ids).logits


def test_keeping_everything_changes_nothing(model_dir: Path) -> None:
    model = load_model(model_dir)
    ids = torch.randint(0, 300, (6, 64), generator=torch.Generator().manual_seed(1))
    before = logits(model, ids)
    prune_units(model, ids, Decision([1024] * 2, [2] * 2), "least_squares")
    assert torch.equal(logits(model, ids), before)


def test_cutting_equals_masking(model_dir: Path) -> None:
    model, arch = load_model(model_dir), load_arch({"model_type": "llama"})
    masked = copy.deepcopy(model)
    block, other = arch.blocks(model)[0], arch.blocks(masked)[0]
    kept = torch.arange(0, 1024, 3)
    gone = torch.ones(1024, dtype=torch.bool)
    gone[kept] = False
    other.mlp.down_proj.weight.data[:, gone] = 0
    other.self_attn.o_proj.weight.data[:, 32:] = 0  # the second KV group's two query heads of 16
    arch.cut(block, groups=torch.tensor([0]), kept_neurons=kept)
    ids = torch.randint(0, 300, (2, 32))
    assert torch.allclose(logits(model, ids), logits(masked, ids), atol=1e-5)


STRUCTURED_SCORES = [m.name for m in METHODS.values() if "structured" in m.patterns and m.name != "taylor"]


@pytest.mark.whole
@pytest.mark.parametrize("method", STRUCTURED_SCORES)
def test_every_method_prunes_to_the_wanted_sizes_and_round_trips(
    model_dir: Path, tmp_path: Path, method: str
) -> None:
    model = load_model(model_dir)
    ids = torch.randint(0, 300, (12, 64), generator=torch.Generator().manual_seed(2))
    result = prune_units(model, ids, Decision([512, 768], [1, 2]), method)
    assert [len(block.neurons) for block in result.blocks] == [512, 768]
    assert [len(block.kv_groups) for block in result.blocks] == [1, 2]
    assert result.importance["blk.1.ffn_down.weight"].shape == (768,)
    save_model(model, model_dir, tmp_path / "small")
    again = load_model(tmp_path / "small")
    assert torch.equal(logits(again, ids), logits(model, ids))


def test_a_given_plan_is_kept_to_the_index(model_dir: Path) -> None:
    model, arch = load_model(model_dir), load_arch({"model_type": "llama"})
    plan = (
        BlockPlan((1,), tuple(range(0, 1024, 2))),
        BlockPlan((0, 1), tuple(range(64))),
    )
    gates = [block.mlp.gate_proj.weight.detach().clone() for block in arch.blocks(model)]
    ids = torch.randint(0, 300, (6, 64))
    prune_units(model, ids, Decision.exactly(plan), "least_squares")
    for block, gate, part in zip(arch.blocks(model), gates, plan, strict=True):
        assert torch.equal(block.mlp.gate_proj.weight, gate[list(part.neurons)])


def test_the_refit_is_closer_to_the_dense_model_than_cutting_alone(model_dir: Path) -> None:
    arch = load_arch({"model_type": "llama"})
    ids = torch.randint(0, 300, (32, 64), generator=torch.Generator().manual_seed(3))
    dense = logits(load_model(model_dir), ids)
    refitted, cut = load_model(model_dir), load_model(model_dir)
    result = prune_units(refitted, ids, Decision([256] * 2, [2] * 2), "least_squares")
    for block, part in zip(arch.blocks(cut), result.blocks, strict=True):
        arch.cut(block, kept_neurons=torch.tensor(part.neurons))
    assert (logits(refitted, ids) - dense).norm() < 0.8 * (logits(cut, ids) - dense).norm()


def test_scores_of_all_blocks_are_those_of_the_dense_activations(model_dir: Path) -> None:
    model, arch = load_model(model_dir), load_arch({"model_type": "llama"})
    ids = torch.randint(0, 300, (4, 64), generator=torch.Generator().manual_seed(7))
    seen: list[Tensor] = []
    handles = [
        arch.ffn_out(block).register_forward_hook(
            lambda _m, inputs, _o: seen.append(inputs[0].abs().mean((0, 1)))
        )
        for block in arch.blocks(model)
    ]
    logits(model, ids)
    for handle in handles:
        handle.remove()
    for (groups, neurons), expected in zip(
        score_blocks(model, arch, ids, contextual.mean_l1), seen, strict=True
    ):
        assert groups.shape == (2,)
        assert torch.allclose(neurons, expected, rtol=0.05, atol=1e-3)


def test_flap_gives_the_output_matrices_a_bias(model_dir: Path, tmp_path: Path) -> None:
    model, arch = load_model(model_dir), load_arch({"model_type": "llama"})
    ids = torch.randint(0, 300, (8, 64), generator=torch.Generator().manual_seed(8))
    prune_units(model, ids, Decision([512] * 2, [2] * 2), "flap")
    save_model(model, model_dir, tmp_path / "flap")
    again = load_model(tmp_path / "flap")
    assert all(arch.ffn_out(block).bias.abs().sum() > 0 for block in arch.blocks(again))
    assert torch.equal(logits(again, ids), logits(model, ids))


def test_costs_rise_as_blocks_narrow(model_dir: Path) -> None:
    model, arch = load_model(model_dir), load_arch({"model_type": "llama"})
    ids = torch.randint(0, 300, (16, 128), generator=torch.Generator().manual_seed(4))
    costs = measure_costs(model, arch, ids, seed=0)
    assert len(costs) == 2
    for cost in costs:
        assert cost.widths[0] == 1024 and cost.ffn[0] == 0
        assert all(b >= a for a, b in zip(cost.ffn, cost.ffn[1:], strict=False))
        assert len(cost.attention) == 2 and cost.attention[1] > 0
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_loud_tokens_that_do_not_matter_cost_nothing() -> None:
    """The first tokens' neurons are a thousand times the others', and no gradient ever reaches them."""
    from minigpt_edge.prune.weighted import WeightedGram

    x = torch.randn(6, 40, 12, generator=torch.Generator().manual_seed(5))
    x[:, 0] *= 1000
    linear = torch.nn.Linear(12, 5)
    watched = WeightedGram(linear)
    size = torch.rand(6, 40, 1, generator=torch.Generator().manual_seed(6)) + 0.5
    size[:, 0] = 0
    gradient = size * torch.nn.functional.normalize(torch.ones(5), dim=0)
    (linear(x.requires_grad_()) * gradient).sum().backward()
    rows, weight = x.detach().flatten(0, 1), size.flatten().square()
    expected = rows.t() @ (weight[:, None] * rows) / weight.sum()
    # bfloat16, where the processor has it, keeps a number to 1 / 256
    torch.testing.assert_close(watched.mean(), expected, rtol=0.01, atol=0.05)


def test_a_group_costs_more_once_its_stand_in_is_gone() -> None:
    from minigpt_edge.prune.allocate import _group_path

    x = torch.randn(500, 12, generator=torch.Generator().manual_seed(5))
    x[:, 4:8] = x[:, :4] + 0.01 * x[:, 4:8]  # the second of three groups repeats the first
    weight = torch.randn(12, 6, generator=torch.Generator().manual_seed(6))
    none, one, two = _group_path(x.t() @ x / 500, weight, torch.eye(6), 4)
    assert none == 0 and one < 0.1 * (two - one)


def test_ranges_round_trip() -> None:
    assert to_ranges([0, 1, 2, 7, 9, 10]) == "0-2,7,9-10"
    assert from_ranges("0-2,7,9-10") == (0, 1, 2, 7, 9, 10)
    assert from_ranges("") == ()
    with pytest.raises(ValueError, match="ascending"):
        from_ranges("5,3")
