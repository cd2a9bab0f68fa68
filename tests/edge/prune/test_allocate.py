"""Allocation gives what it gave when its results were recorded, on random costs."""

from __future__ import annotations

import json
import random
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
