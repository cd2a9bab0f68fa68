"""The pruning methods: one file per method, each registered here by name.

A structured method scores units, `UnitStatistics -> float32 [units / group]`, the higher the more worth
keeping; mask methods zero single weights; depth methods drop whole blocks; rank methods replace matrices by
products of two smaller ones.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minigpt_edge_runtime.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

STRUCTURED, UNSTRUCTURED, BLOCKS, RANK = "structured", "unstructured", "blocks", "rank"


@dataclass(frozen=True)
class UnitStatistics:
    """What calibration knows of the units that one matrix W reads: y = x W.

    Attributes:
        weight: W in the model as it is, float32 [units, outputs].
        energy: mean x^2 over the calibration tokens, float32 [units].
        mean, mean_abs: mean x and mean |x|, float32 [units], where the method reads them.
        gram: mean of x x^T, float32 [units, units], where the method reads it or a refit follows.
        cross: mean of x y^T with the wanted output y, float32 [units, outputs], with `gram`.
        metric: Fisher information of the outputs, float32 [outputs, outputs], or None for the identity.
        seed: for what is drawn at random; different for every matrix.
        group: consecutive units that stay or go together (1 for neurons; a KV group's mixed values).
    """

    weight: Tensor
    energy: Tensor
    mean: Tensor | None = None
    mean_abs: Tensor | None = None
    gram: Tensor | None = None
    cross: Tensor | None = None
    metric: Tensor | None = None
    seed: int = 0
    group: int = 1


@dataclass(frozen=True)
class Method:
    """A way to decide what goes.

    Attributes:
        name, summary, paper: what `minigpt-edge methods` prints.
        module: where it is; for a structured method with a function called `function`.
        patterns: "structured" for whole units, "unstructured" and "n:m" for masks, "blocks", "rank".
        compensation: what the kept weights that read the units become: "none", "bias" (the mean of what went)
            or "least_squares".
        widths: how blocks share the cut unless --widths says: "equal", "free" (by estimated loss per
            parameter) or "global" (one cut over all blocks' scores).
        reconsiders: scores single units again after each part of them is gone: the module offers
            `select(statistics, keep)`.
        reads: what it needs beyond the energy: "mean", "mean_abs", "gram", or "gradient" (then the module
            offers `unit_scores(model, arch, windows)` for all blocks at once).
    """

    name: str
    summary: str
    paper: str
    module: str
    function: str = "scores"
    patterns: tuple[str, ...] = (STRUCTURED,)
    compensation: str = "none"
    widths: str = "equal"
    reconsiders: bool = False
    reads: tuple[str, ...] = ()

    def scores(self, statistics: UnitStatistics) -> Tensor:
        """float32 [units / group], the higher the more worth keeping."""
        function: Callable[[UnitStatistics], Tensor] = getattr(
            importlib.import_module(self.module), self.function
        )
        return function(statistics)

    def select(self, statistics: UnitStatistics, keep: int) -> Tensor:
        """Ascending indices of the `keep` units (or groups) that stay."""
        if self.reconsiders and statistics.group == 1:
            return importlib.import_module(self.module).select(statistics, keep)  # type: ignore[no-any-return]
        return self.scores(statistics).topk(keep).indices.sort().values


_MASKS = (UNSTRUCTURED, "2:4", "4:8")
_PRUNE = "minigpt_edge.prune.methods"
METHODS = {
    method.name: method
    for method in (
        Method(
            "least_squares",
            "error that is left after a least-squares refit, in rounds; sizes by estimated loss",
            "ours, after OBS and OSSCAR (arXiv 2403.12983)",
            f"{_PRUNE}.least_squares",
            compensation="least_squares",
            widths="free",
            reconsiders=True,
            reads=("gram",),
        ),
        Method(
            "contextual",
            "mean |activation| below a threshold or among the lowest; rare tokens",
            "Mini-GPTs, arXiv 2312.12682",
            f"{_PRUNE}.contextual",
            reads=("mean_abs",),
        ),
        Method(
            "wanda",
            "|weight| x norm of its input, by row; structured: averaged over a unit's outputs",
            "Wanda, arXiv 2306.11695; structured as Wanda-sp in FLAP, arXiv 2312.11983",
            f"{_PRUNE}.wanda",
            patterns=(STRUCTURED, *_MASKS),
        ),
        Method(
            "sparsegpt",
            "masks with the update of the weights that stay, from the inverse Hessian",
            "SparseGPT, arXiv 2301.00774",
            f"{_PRUNE}.sparsegpt",
            patterns=_MASKS,
        ),
        Method(
            "flap",
            "fluctuation of the activation x norm of its weights, one cut over all blocks, bias for the mean",
            "FLAP, arXiv 2312.11983",
            f"{_PRUNE}.flap",
            compensation="bias",
            widths="global",
            reads=("mean",),
        ),
        Method(
            "taylor",
            "|weight x gradient| summed over a unit's weights, from a backward pass",
            "LLM-Pruner, arXiv 2305.11627",
            f"{_PRUNE}.taylor",
            reads=("gradient",),
        ),
        Method(
            "magnitude",
            "norm of the weights that read a unit, the lowest go; masks: |weight|, by matrix",
            "Han et al., arXiv 1506.02626",
            f"{_PRUNE}.magnitude",
            patterns=(STRUCTURED, *_MASKS),
        ),
        Method(
            "magnitude_high",
            "the same, but the highest go: an ablation, not for use",
            "ablation of Mini-GPTs, arXiv 2312.12682",
            f"{_PRUNE}.magnitude",
            function="scores_high",
        ),
        Method(
            "random",
            "units drawn with --seed: an ablation, not for use",
            "ablation of Mini-GPTs, arXiv 2312.12682",
            f"{_PRUNE}.random",
        ),
        Method(
            "blocks",
            "whole blocks by measured loss, the neighbour refitted where that helps",
            "Shortened LLaMA, arXiv 2402.02834; ReplaceMe, arXiv 2505.02819",
            f"{_PRUNE}.blocks",
            patterns=(BLOCKS,),
            widths="global",
        ),
        Method(
            "laser",
            "low rank in chosen matrices as far as held-out text does not suffer; no fine-tuning",
            "LASER, arXiv 2312.13558",
            f"{_PRUNE}.laser",
            patterns=(RANK,),
        ),
    )
}
DEFAULT_METHOD = "least_squares"


def get_method(name: str) -> Method:
    """The method of that name; UsageError listing the known ones."""
    if name not in METHODS:
        raise UsageError(f"unknown method {name!r}", f"known methods: {', '.join(METHODS)}")
    return METHODS[name]
