"""What a pruning method is: a name, a paper, and a pruner for each pattern that it has."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from minigpt_edge.prune.context import PruneContext, Pruned
from minigpt_edge_runtime.errors import UsageError


class Pruner(ABC):
    """How a method prunes in one kind of pattern.

    Attributes:
        patterns: names of the patterns, the usual one first.
        removes: whether parameters are removed; then the vocabulary is trimmed too.
        sized: whether blocks get sizes, by their KV groups and neurons, that can be planned.
        blockwise: whether it needs one block at a time, so that the others may stay on disk.
        masks: whether what it did are zeros, which fine-tuning has to keep.
        recovers: whether fine-tuning can keep what it did.
    """

    patterns: ClassVar[tuple[str, ...]]
    removes: ClassVar[bool] = False
    sized: ClassVar[bool] = False
    blockwise: ClassVar[bool] = False
    masks: ClassVar[bool] = False
    recovers: ClassVar[bool] = True

    @property
    @abstractmethod
    def options(self) -> tuple[str, ...]:
        """Fields of the recipe that mean something to it, of those that not every pruner takes."""

    @property
    def widths(self) -> str:
        """How blocks share the cut; see `UnitScores`."""
        return "equal"

    @property
    def needs_refit(self) -> bool:
        """Whether its scores mean nothing without a least-squares refit."""
        return False

    def takes(self, pattern: str) -> bool:
        """Whether this is the pruner for a pattern."""
        return pattern in self.patterns

    def default_sparsity(self, pattern: str) -> float | None:
        """The sparsity that the pattern implies; None where any will do."""
        return None

    @abstractmethod
    def apply(self, context: PruneContext) -> Pruned:
        """Prune the blocks of the context's model in place.

        Raises:
            EdgeError: not enough can be removed, or the architecture lacks what the method needs.
        """


@dataclass(frozen=True)
class Method:
    """A way to decide what is removed.

    Attributes:
        name, summary, paper: what `minigpt-edge methods` prints.
        pruners: one for each kind of pattern, the usual one first.
        code: modules outside this package that decide the result.
    """

    name: str
    summary: str
    paper: str
    pruners: tuple[Pruner, ...]
    code: tuple[str, ...] = ()

    @property
    def patterns(self) -> tuple[str, ...]:
        """All patterns; the first is the one that is used unless another is asked for."""
        return tuple(pattern for pruner in self.pruners for pattern in pruner.patterns)

    def pruner(self, pattern: str) -> Pruner:
        """The pruner for a pattern; UsageError if the method has none."""
        for pruner in self.pruners:
            if pruner.takes(pattern):
                return pruner
        raise UsageError(f"{self.name} has no pattern {pattern!r}", f"it has {', '.join(self.patterns)}")
