"""LASER (arXiv 2312.13558): chosen matrices replaced by their best approximations of low rank.

A reduction is the paper's (l, tau, rho): block, matrix, and the share of the full rank that is kept. The one
that helps most is searched among single ones; several are composed greedily from the last block to the first.
Both go by a score on validation data, and both leave the model as they found it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from minigpt_edge.prune.context import RANK, Done, PruneContext, Pruned, unwatched
from minigpt_edge.prune.method import Method, Pruner
from minigpt_edge_export.architectures import architecture_of
from minigpt_edge_runtime.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from minigpt_edge.models.archs.base import Arch

# The paper's tau -> part of a block; U_in of the paper is gate and up, U_out is down.
PARTS = {
    "q": "query",
    "k": "key",
    "v": "value",
    "o": "attention_output",
    "gate": "gate",
    "up": "up",
    "down": "down",
}
GROUPS = {"attn": ("q", "k", "v", "o"), "mlp": ("gate", "up", "down"), "all": tuple(PARTS)}
SEARCH_RHOS = (0.9, 0.8, 0.6, 0.4, 0.2, 0.1, 0.05, 0.01)
COMPOSE_RHOS = (0.55, 0.1, 0.06, 0.02)  # the values of the authors' script

# score(model, first): the higher the better; no block before `first` differs from the dense model
Score = Callable[[Any, int], float]


@dataclass(frozen=True)
class Reduction:
    """Keep `rho` of the full rank of a matrix of a block, or of every matrix of a group, each on its own."""

    block: int
    matrix: str
    rho: float

    @property
    def parts(self) -> tuple[str, ...]:
        """The single matrices it means."""
        return GROUPS.get(self.matrix, (self.matrix,))

    def __str__(self) -> str:
        return f"{self.block}:{self.matrix}:{self.rho:g}"


@dataclass(frozen=True)
class Trial:
    """A reduction that was tried, and the validation score with it."""

    reduction: Reduction
    score: float


@dataclass(frozen=True)
class Composition:
    """What `compose` kept, the scores without and with it, and all that it tried, in order."""

    reductions: tuple[Reduction, ...]
    dense: float
    score: float
    trials: tuple[Trial, ...]


def parse_reductions(text: str) -> list[Reduction]:
    """Reductions from "BLOCK:MATRIX:RHO,…", such as "26:up:0.1,27:mlp:0.05".

    Raises:
        UsageError: the text has another form, a matrix is unknown or named twice, or rho is not in (0, 1).
    """
    found: list[Reduction] = []
    seen: set[tuple[int, str]] = set()
    for item in text.split(","):
        try:
            block, matrix, rho = item.split(":")
            reduction = Reduction(int(block), matrix.strip(), float(rho))
        except ValueError as error:
            raise UsageError(
                f"{item.strip()!r} is no rank reduction", "write BLOCK:MATRIX:RHO, such as 26:up:0.1"
            ) from error
        if reduction.matrix not in PARTS and reduction.matrix not in GROUPS:
            known = ", ".join((*PARTS, *GROUPS))
            raise UsageError(f"a block has no matrix {reduction.matrix!r}", f"known matrices: {known}")
        if reduction.block < 0 or not 0 < reduction.rho < 1:
            raise UsageError(
                f"{item.strip()!r}: the block must be 0 or more, the share of the rank between 0 and 1"
            )
        places = {(reduction.block, part) for part in reduction.parts}
        if places & seen:
            raise UsageError(f"{item.strip()!r} reduces a matrix again that was named before")
        seen |= places
        found.append(reduction)
    return found


def rank_of(shape: Sequence[int], rho: float) -> int:
    """The rank that is kept of a matrix: rho of the full rank, rounded down, at least 1."""
    return max(1, int(rho * min(shape)))


def _balanced(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Factors of full rank, float32, their columns and rows ordered by singular value.

    Both carry the square roots of the singular values, so that they quantize equally well.
    """
    import torch

    u, s, v = torch.linalg.svd(weight.detach().float(), full_matrices=False)
    return u * s.sqrt(), s.sqrt()[:, None] * v


def _cut(factors: tuple[Tensor, Tensor], rho: float) -> tuple[Tensor, Tensor]:
    b, a = factors
    rank = rank_of((len(b), a.shape[1]), rho)
    return b[:, :rank].contiguous(), a[:rank].contiguous()


class RankPruner(Pruner):
    """Lowers the rank of matrices as far as held-out text does not suffer."""

    patterns = (RANK,)
    options = ("reductions",)
    recovers = False

    def apply(self, context: PruneContext) -> Pruned:
        """Do the reductions that were named; else the best single one's, composed over all blocks."""
        from minigpt_edge.prune.calibrate import measure_importance

        model, arch, named = context.model, context.arch, context.settings.reductions
        wanted, metrics = (parse_reductions(named), {}) if named else _searched(context)
        factors = apply_reductions(model, arch, wanted, context.progress("ranks"))
        spared = sum(b.shape[0] * a.shape[1] - b.numel() - a.numel() for b, a in factors.values())
        metrics |= {"reductions": ",".join(map(str, wanted)), "spared_where_factors_run": max(0, spared)}
        importance = measure_importance(model, arch, context.windows)
        return Pruned(context.whole_blocks(), importance, metrics=metrics, factors=factors)


METHOD = Method(
    "laser",
    "low rank in chosen matrices as far as held-out text does not suffer; no fine-tuning",
    "LASER, arXiv 2312.13558",
    (RankPruner(),),
)


def _searched(context: PruneContext) -> tuple[list[Reduction], dict[str, Any]]:
    """The composition of the matrix whose best single reduction is the best, and its scores."""
    from minigpt_edge.evaluation.probe import Probe

    model, arch, texts = context.model, context.arch, context.probe.tolist()
    matrices = [name for name in ("gate", "up", "down") if name in arch.names]
    score = Probe(model, arch, texts, [1] * len(texts)).likelihood
    reducer = Reducer(model, arch)
    tried = candidates(range(reducer.blocks // 2, reducer.blocks), matrices)
    best = search(reducer, score, tried, context.progress("single reductions"))[0].reduction
    found = compose(reducer, score, best.matrix, on_step=context.progress("composition"))
    scores = {"dense": found.dense, "reduced": found.score}
    return list(found.reductions), {"score": scores, "best_single": str(best)}


@dataclass(frozen=True)
class _Dense:
    """A weight of the model, what it was, and the factors of that."""

    weight: Tensor
    value: Tensor
    factors: tuple[Tensor, Tensor]


class Reducer:
    """Reduces matrices of a model in place and takes it back.

    A matrix is decomposed once, and it and its full factors are kept: two to three times its memory.
    """

    def __init__(self, model: Any, arch: Arch) -> None:
        self.model, self.arch = model, arch
        self._blocks = arch.blocks(model)
        self._names = architecture_of(model.config.model_type).names  # as checkpoints have them, factors too
        self._dense: dict[str, _Dense] = {}

    @property
    def blocks(self) -> int:
        """The number of blocks."""
        return len(self._blocks)

    def reduce(self, reduction: Reduction) -> dict[str, tuple[Tensor, Tensor]]:
        """Replace dense matrices by their reduction; module path -> its factors b [out, r] and a [r, in].

        Raises:
            UsageError: the model has no such block.
        """
        factors = {}
        for path, weight in self._weights(reduction):
            if path not in self._dense:
                self._dense[path] = _Dense(weight, weight.detach().clone(), _balanced(weight))
            b, a = factors[path] = _cut(self._dense[path].factors, reduction.rho)
            weight.data.copy_(b @ a)
        return factors

    def restore(self, reduction: Reduction) -> None:
        """Put the dense matrices of a reduction back."""
        for path, weight in self._weights(reduction):
            weight.data.copy_(self._dense[path].value)

    def restore_all(self) -> None:
        """Put every dense matrix back."""
        for dense in self._dense.values():
            dense.weight.data.copy_(dense.value)

    def _weights(self, reduction: Reduction) -> list[tuple[str, Tensor]]:
        if reduction.block >= self.blocks:
            raise UsageError(
                f"the model has no block {reduction.block}", f"its blocks are 0 to {self.blocks - 1}"
            )
        paths = [self._names[PARTS[part]] for part in reduction.parts if PARTS[part] in self._names]
        if not paths:
            raise UsageError(
                f"{self.model.config.model_type} models have no matrix {reduction.matrix!r} of their own",
                "name another one",
            )
        block, prefix = self._blocks[reduction.block], self._names["block"].format(index=reduction.block)
        return [(prefix + path, block.get_submodule(path).weight) for path in paths]


def apply_reductions(
    model: Any, arch: Arch, reductions: Iterable[Reduction], on_step: Done = unwatched
) -> dict[str, tuple[Tensor, Tensor]]:
    """Reduce a model in place; what `checkpoint.save_factors` writes: module path -> (b, a).

    Raises:
        UsageError: the model has no such block.
    """
    reducer, wanted = Reducer(model, arch), list(reductions)
    factors = {}
    for done, reduction in enumerate(wanted):
        factors.update(reducer.reduce(reduction))
        on_step(done + 1, len(wanted))
    return factors


def candidates(
    blocks: Iterable[int], matrices: Sequence[str], rhos: Sequence[float] = SEARCH_RHOS
) -> list[Reduction]:
    """Every single reduction of these blocks, matrices and shares."""
    return [Reduction(block, matrix, rho) for block in blocks for matrix in matrices for rho in rhos]


def search(
    reducer: Reducer,
    score: Score,
    tried: Sequence[Reduction],
    on_step: Done = unwatched,
) -> list[Trial]:
    """Try reductions one at a time; best score first, of equal ones the stronger reduction."""
    trials = []
    for done, reduction in enumerate(tried):
        reducer.reduce(reduction)
        try:
            trials.append(Trial(reduction, score(reducer.model, reduction.block)))
        finally:
            reducer.restore(reduction)
        on_step(done + 1, len(tried))
    return sorted(trials, key=lambda trial: (-trial.score, trial.reduction.rho))


def compose(
    reducer: Reducer,
    score: Score,
    matrix: str,
    rhos: Sequence[float] = COMPOSE_RHOS,
    on_step: Done = unwatched,
) -> Composition:
    """Reduce a matrix of every block, from the last to the first, as far as the score does not fall.

    In each block the shares are tried from the largest on. The first that lowers the score is taken back, and
    the one before it is kept; so is everything kept in later blocks.
    """
    model, blocks = reducer.model, reducer.blocks
    dense = best = score(model, blocks)
    kept: dict[int, Reduction] = {}
    trials: list[Trial] = []
    try:
        for block in reversed(range(blocks)):
            for rho in sorted(rhos, reverse=True):
                step = Reduction(block, matrix, rho)
                reducer.reduce(step)
                trials.append(Trial(step, score(model, block)))
                if not trials[-1].score >= best:
                    reducer.restore(step)
                    if block in kept:
                        reducer.reduce(kept[block])
                    break
                best, kept[block] = trials[-1].score, step
            on_step(blocks - block, blocks)
    finally:
        reducer.restore_all()
    return Composition(tuple(kept.values()), dense, best, tuple(trials))
