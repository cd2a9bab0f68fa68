"""Pruning of a model in memory by one method, without a build."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from torch import Tensor  # noqa: TID253

from minigpt_edge.models.archs import load_arch
from minigpt_edge.prune.context import STRUCTURED, PruneContext, Pruned, PruneInputs, PruneSettings
from minigpt_edge.prune.decide import Decision
from minigpt_edge.prune.methods.registry import get_method
from minigpt_edge.prune.units import UnitPruner


def prune_context(
    model: Any, windows: Tensor, inputs: dict[str, Any] | None = None, **settings: Any
) -> PruneContext:
    """What a method is given, with these windows of token ids and settings."""
    plain = PruneSettings(0.0, "least_squares", "equal", 0, windows.numel(), windows.shape[1], 0, 1)
    given = PruneInputs(Path(), "", Path(), dataclasses.replace(plain, **settings), **inputs or {})
    return PruneContext(given, Path(), model, load_arch(model.config), {}, windows)


def prune_units(model: Any, windows: Tensor, decision: Decision, method: str) -> Pruned:
    """Prune a model in place to decided sizes by a structured method."""
    pruner = get_method(method).pruner(STRUCTURED)
    assert isinstance(pruner, UnitPruner)
    return pruner.apply(prune_context(model, windows), decision)
