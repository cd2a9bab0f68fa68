"""Costs on unseen windows: against the errors of tokens one by one."""

from __future__ import annotations

import pytest
import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253

from minigpt_edge.prune.held_out import Halves, raised
from minigpt_edge.prune.refit import DAMPING, refit

UNITS, OUTPUTS, KEPT = 24, 6, torch.arange(9)


def drawn(tokens: int, seed: int) -> Tensor:
    """What a matrix reads: units that are mixtures of each other, and noise."""
    chance = torch.Generator().manual_seed(seed)
    mixed = torch.randn(tokens, 8, generator=chance) @ torch.randn(8, UNITS, generator=chance)
    return mixed + torch.randn(tokens, UNITS, generator=chance)


def halves_of(first: Tensor, second: Tensor) -> Halves:
    sums = [torch.triu(x.t() @ x) for x in (first, second)]
    return Halves.of(sums, len(first) + len(second))


def in_sample(x: Tensor, weight: Tensor) -> float:
    """Half the mean squared error of fitting KEPT to all outputs, on the tokens fitted."""
    gram = x.t() @ x / len(x)
    fitted = refit(gram[KEPT][:, KEPT], (gram @ weight)[KEPT], weight[KEPT], DAMPING)
    return float((x @ weight - x[:, KEPT] @ fitted).square().sum(1).mean() / 2)


@pytest.fixture(scope="module")
def weight() -> Tensor:
    return torch.randn(UNITS, OUTPUTS, generator=torch.Generator().manual_seed(1))


def test_the_cost_is_the_error_on_the_half_that_was_not_fitted(weight: Tensor) -> None:
    both = drawn(120, seed=2).split(60)
    root = torch.randn(OUTPUTS, OUTPUTS, generator=torch.Generator().manual_seed(3))
    errors = []
    for fitted, other in (both, both[::-1]):
        gram = fitted.t() @ fitted
        new = refit(gram[KEPT][:, KEPT], (gram @ weight)[KEPT], weight[KEPT], DAMPING)
        errors.append(((other @ weight - other[:, KEPT] @ new) @ root).square().sum(1).mean() / 2)
    found = halves_of(*both).cost(weight, root @ root.t(), KEPT)
    assert found == pytest.approx(float(sum(errors) / 2), rel=1e-3)


def test_a_path_is_raised_to_what_unseen_text_loses(weight: Tensor) -> None:
    both = drawn(80, seed=2).split(40)
    seen, metric = in_sample(torch.cat(both), weight), torch.eye(OUTPUTS)
    costs = [0.0, seen / 2, seen, 2 * seen]
    unseen = halves_of(*both).cost(weight, metric, KEPT)
    assert unseen > 1.3 * seen
    found = raised(costs, [(2, KEPT)], halves_of(*both), weight, metric)
    assert found == pytest.approx([0.0, unseen / 2, unseen, 2 * unseen], rel=1e-3)


def test_text_that_comes_again_costs_what_it_seems_to(weight: Tensor) -> None:
    once = drawn(40, seed=2)
    costs = [0.0, in_sample(once, weight)]
    found = raised(costs, [(1, KEPT)], halves_of(once, once), weight, torch.eye(OUTPUTS))
    assert found == pytest.approx(costs, rel=1e-2)


def test_one_window_has_no_other_half(weight: Tensor) -> None:
    once = drawn(40, seed=2)
    halves = halves_of(once, torch.zeros(0, UNITS))
    assert raised([0.0, 1.0], [(1, KEPT)], halves, weight, torch.eye(OUTPUTS)) == [0.0, 1.0]
