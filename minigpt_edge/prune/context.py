"""What a pruning method is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt_edge.prune.plan import BlockPlan, Plan
from minigpt_edge.prune.unrecovered import AFTER_RECOVERY, Shares

if TYPE_CHECKING:
    import torch

    from minigpt_edge.models.archs.base import Arch
    from minigpt_edge.prune.decide import Decision

CHECKPOINT, PLAN, IMPORTANCE = "checkpoint", "plan.json", "imatrix.safetensors"  # files of the stage
STRUCTURED, UNSTRUCTURED, BLOCKS, RANK = "structured", "unstructured", "blocks", "rank"
WIDTH_MULTIPLE = 32  # the block of the 32-wide quantization types
SPARSITY_TOLERANCE = 0.005  # by which what is removed may miss the fraction that was asked for
MICRO_BATCH_TOKENS = 4096  # tokens of one forward pass
VALIDATION_SHARE = 0.15  # This share of the calibration set chooses the ridge, then joins the fit.
FIXED_COUNT = 5  # of a token that is kept where no loss is estimated that would say it better
SENSITIVITY_TOKENS = 8192  # This much of the calibration set serves the passes that try or differentiate.

Progress = Callable[[str, int, int], None]
Done = Callable[[int, int], None]


def unwatched(done: int, total: int) -> None:
    """Progress that nobody is shown."""


@dataclass(frozen=True)
class Limit:
    """A budget that is not a sparsity: "parameters" or "bytes" of the file at most, "speedup" of decoding
    at least.

    `target` names the file format and type that bytes and speed are estimated for.
    """

    kind: str
    value: float
    target: str


@dataclass(frozen=True)
class PruneSettings:
    """What decides the result of pruning, besides the model and the corpus.

    Attributes:
        sparsity: fraction of the parameters to remove (of the blocks' matrices, for masks).
        limit: in place of `sparsity`.
        threshold: in place of `sparsity`, for the contextual method: mean |activation| of what is removed.
        pattern: "structured", "unstructured", "n:m", "blocks", "rank".
        widths: "free", "equal" or "global"; see `UnitScores.widths`.
        min_count: tokens seen less often are removed; 0 keeps all. None lets the loss decide, where it is
            estimated, and is FIXED_COUNT elsewhere.
        compensation: in place of the method's own; see `UnitScores.compensation`.
        reductions: of the method laser, such as "26:up:0.1"; "" searches.
        whole_attention: no KV group is removed, since a target could not carry it.
        embedding_threshold: tokens whose share of the training tokens is not above it are removed; None for
            min_count.
        unrecovered: shares of estimated losses that are left in the end, by which sizes are decided.
    """

    sparsity: float
    method: str
    widths: str
    min_count: int | None
    calibration_tokens: int
    window: int
    seed: int
    threads: int
    pattern: str = STRUCTURED
    compensation: str | None = None
    limit: Limit | None = None
    threshold: float | None = None
    reductions: str = ""
    embedding_threshold: float | None = None
    whole_attention: bool = False
    unrecovered: Shares = AFTER_RECOVERY

    @property
    def least_count(self) -> int:
        """How often a token has to be seen to be kept, where counts decide."""
        return FIXED_COUNT if self.min_count is None else self.min_count

    @property
    def by_loss(self) -> bool:
        """Whether sizes are decided by estimated loss: those of the blocks, and of the vocabulary if no count
        is given."""
        return self.widths == "free" and self.threshold is None

    @property
    def exact(self) -> bool:
        """Whether a fraction of the parameters is what was asked for."""
        return self.limit is None and self.threshold is None


@dataclass(frozen=True)
class PruneInputs:
    """What pruning starts from.

    Attributes:
        base: checkpoint directory of the dense model.
        fingerprint: sha256 that a plan names the dense model by.
        corpus: directory of a corpus, whose training split decides.
        plan: a plan to follow; its tokens, KV groups and neurons are kept, refitted to this corpus.
        terms: their tokens are kept, whether or not the corpus has them.
        on_progress: called with (what, done, total).
        max_memory: bytes that pruning may take, by an estimate; None for what is free.
    """

    base: Path
    fingerprint: str
    corpus: Path
    settings: PruneSettings
    plan: Path | None = None
    terms: Sequence[str] = ()
    on_progress: Progress = lambda what, done, total: None
    max_memory: int | None = None


@dataclass(frozen=True)
class PruneContext:
    """What a method prunes, and what it decides from.

    Attributes:
        inputs: what pruning started from.
        directory: gets the result; `directory / CHECKPOINT` holds the trimmed tokenizer already.
        model: float32, its vocabulary trimmed; the method changes it in place.
        arch: the model's architecture.
        config: the dense model's, with LLaMA's names for its sizes.
        windows: the calibration set, token ids int64 [windows >= 2, s], each window starting with the
            document-start token.
        tokens: kept ids of the dense vocabulary, ascending.
        plan: the plan to follow, if one was given.
        dense: parameters of the dense model.
        remove: how many parameters of the blocks are still to be removed.
        decision: the blocks' sizes, where they were decided together with the vocabulary.
    """

    inputs: PruneInputs
    directory: Path
    model: Any
    arch: Arch
    config: dict[str, Any]
    windows: torch.Tensor
    tokens: tuple[int, ...] = ()
    plan: Plan | None = None
    dense: int = 0
    remove: int = 0
    decision: Decision | None = None

    @property
    def settings(self) -> PruneSettings:
        """What decides the result."""
        return self.inputs.settings

    @property
    def probe(self) -> torch.Tensor:
        """The first SENSITIVITY_TOKENS of the calibration set, at least one window."""
        return self.windows[: max(1, SENSITIVITY_TOKENS // self.windows.shape[1])]

    def progress(self, what: str) -> Done:
        """A function that is called with (done, total) of one of the method's passes."""
        return partial(self.inputs.on_progress, what)

    def whole_blocks(self) -> list[BlockPlan]:
        """All blocks of the model as they are, every KV group and neuron kept."""
        sizes = [self.arch.sizes(block) for block in self.arch.blocks(self.model)]
        return [
            BlockPlan(tuple(range(size["num_key_value_heads"])), tuple(range(size["intermediate_size"])))
            for size in sizes
        ]


@dataclass
class Pruned:
    """What a method did to the blocks.

    Attributes:
        blocks: what is kept of each block.
        importance: the importance matrix: GGUF name -> mean squared input, float32.
        errors: of a refit, per block: relative output errors on held-out windows.
        metrics: what else the method reports.
        factors: matrices of low rank: module path -> (b [out, r], a [r, in]).
        dense: what the dense model's head reads on the calibration set, float16 [windows, s, width],
            where the method ran it to the end.
    """

    blocks: list[BlockPlan] = field(default_factory=list)
    importance: dict[str, torch.Tensor] = field(default_factory=dict)
    errors: list[dict[str, float]] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)
    factors: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    dense: torch.Tensor | None = None
