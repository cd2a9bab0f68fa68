"""The ablations: units by size the wrong way round, and units drawn by the seed."""

from __future__ import annotations

import dataclasses

import pytest
import torch  # noqa: TID253

from benchmarks.lib import ablations
from minigpt_edge.prune.methods import magnitude
from minigpt_edge.prune.methods.registry import METHODS, get_method
from minigpt_edge.prune.scores import UnitStatistics


def test_ablations_go_by_size_either_way_and_by_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    s = UnitStatistics(weight, torch.ones(12))
    assert torch.equal(ablations.highest(s), -magnitude.scores(s))
    drawn = [ablations.drawn(dataclasses.replace(s, seed=seed)) for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    for name in ("random", "magnitude_high"):
        assert name not in METHODS
        monkeypatch.setitem(METHODS, name, METHODS["magnitude"])  # and taken out again
    ablations.register()
    assert get_method("random").patterns == ("structured",)
