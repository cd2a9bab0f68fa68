"""Allocation gives what it gave when its results were recorded, on random costs."""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from torch import Tensor  # noqa: TID253

from minigpt_edge.prune.allocate import Costs, Prices, allocate
from minigpt_edge_runtime.errors import EdgeError

RECORDED = Path(__file__).parents[1] / "data" / "allocations.json"
NEURON, MULTIPLE = 96, 32


def no_metrics() -> list[Tensor]:
    return []


def random_costs(maker: random.Random, blocks: int, *, integers: bool) -> list[Costs]:
    """Costs that rise, not always convex; small integers make ties between blocks and steps."""

    def rising(count: int, scale: float) -> list[float]:
        costs = [0.0]
        for _ in range(count - 1):
            costs.append(costs[-1] + (maker.randint(0, 3) if integers else scale * maker.random() ** 3))
        return costs

    made = []
    for _ in range(blocks):
        widths = list(range(MULTIPLE * maker.randint(8, 24), 0, -MULTIPLE))
        made.append(Costs(widths, rising(len(widths), 0.1), rising(maker.randint(1, 5), 1.0), no_metrics))
    return made


def allocations(case: int) -> list[list[list[int]] | None]:
    """(widths, KV groups) for rising budgets on the costs of a case; None where not so much can go."""
    maker = random.Random(case)
    costs = random_costs(maker, maker.randint(1, 6), integers=case % 3 == 0)
    group = maker.choice((64, 640, 5000, 20_000))
    total = sum(c.widths[0] * NEURON + len(c.attention) * group for c in costs)
    slack = maker.choice((0, total // 200, total // 20))
    found: list[list[list[int]] | None] = []
    for share in (0.001, 0.1, 0.25, 0.42, 0.6, 0.9, 1.0):
        try:
            remove = int(share * total)
            prices, narrowest = Prices(NEURON, group), maker.choice((32, 128))
            sizes = allocate(costs, prices, remove, min_width=narrowest, slack=slack)
            found.append([sizes.widths, sizes.kv_groups])
        except EdgeError:
            found.append(None)
    return found


@pytest.mark.parametrize("case", range(40))
def test_allocations_are_those_recorded(case: int) -> None:
    assert allocations(case) == json.loads(RECORDED.read_text())[case]


@pytest.mark.parametrize("case", range(20))
def test_no_other_sizes_save_as_much_for_less(case: int) -> None:
    """Tokens, neurons and KV groups together, against all that there is, where each step costs more than the
    one before."""
    maker = random.Random(case)
    prices = Prices(maker.choice((1.0, 3.5)), 0.0, maker.choice((0.5, 2.0)))
    prices = replace(prices, group=32 * prices.neuron / maker.randint(1, 3))

    def convex(count: int) -> list[float]:
        rises = sorted(maker.random() for _ in range(count - 1))
        return [sum(rises[:n]) for n in range(count)]

    widths, sizes = [128, 96, 64, 32], [320, 224, 128, 64, 32]
    costs = [Costs(widths, convex(4), convex(3), no_metrics) for _ in range(2)]
    rises = sorted(maker.random() for _ in sizes[1:])  # of a token
    tokens, lost = [(320, 0.0)], 0.0
    for before, after, rise in zip(sizes, sizes[1:], rises, strict=False):
        lost += (before - after) * rise / 100
        tokens.append((after, lost))
    parts = [
        *([(prices.neuron * (128 - w), c) for w, c in zip(widths, cost.ffn, strict=True)] for cost in costs),
        *([(prices.group * k, c) for k, c in enumerate(cost.attention)] for cost in costs),
        [(prices.token * (320 - kept), c) for kept, c in tokens],
    ]
    most = sum(part[-1][0] for part in parts)
    for share in (0.1, 0.3, 0.5, 0.7):
        made = allocate(costs, prices, share * most, min_width=32, tokens=tokens)
        chosen = [
            *((128 - width) // 32 for width in made.widths),
            *(3 - groups for groups in made.kv_groups),
            next(n for n, (kept, _) in enumerate(tokens) if kept == made.tokens),
        ]
        saved, cost = (sum(p[n][i] for p, n in zip(parts, chosen, strict=True)) for i in (0, 1))
        assert saved >= share * most
        combinations = itertools.product(*parts)
        best = min(sum(c for _, c in one) for one in combinations if sum(s for s, _ in one) >= saved - 1e-9)
        assert cost == pytest.approx(best)
