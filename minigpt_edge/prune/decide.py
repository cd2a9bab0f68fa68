"""How much is removed where no loss is estimated, as `budget` does: tokens by count, then blocks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from minigpt_edge.models import archs
from minigpt_edge.models.sizes import block_sizes, stock_groups
from minigpt_edge.prune.context import (
    CHECKPOINT,
    SPARSITY_TOLERANCE,
    WIDTH_MULTIPLE,
    PruneContext,
    PruneInputs,
    PruneSettings,
)
from minigpt_edge.prune.plan import BlockPlan
from minigpt_edge.prune.sizing import SizeModel
from minigpt_edge.prune.vocabulary import choose as vocabulary
from minigpt_edge.prune.vocabulary.trim import stated_token_ids
from minigpt_edge_export.targets import parse_target
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.files import read_json
from minigpt_edge_runtime.formats.tokenizer_files import TOKENIZER

if TYPE_CHECKING:
    import numpy as np
    import torch

    from minigpt_edge.prune.scores import BlockScores, UnitScores

T = TypeVar("T")

NAME_BYTES = 512  # of a GGUF file, kept free for what it says about itself


def choose_vocabulary(
    inputs: PruneInputs, config: dict[str, Any], counts: np.ndarray, remove: int
) -> tuple[int, ...]:
    """Kept token ids. Where the blocks can't meet the sparsity exactly, the vocabulary's size does.

    Args:
        config: the dense model's.
        counts: how often each token occurs in the training split, [highest id + 1].
        remove: parameters to remove from vocabulary and blocks.
    """
    settings, base = inputs.settings, inputs.base
    data = read_json(base / TOKENIZER)
    by_share = settings.embedding_threshold is not None
    least = settings.least_count
    if (settings.exact and remove <= 0) or (least == 0 and not by_share):
        return tuple(sorted(set(data["model"]["vocab"].values()) | {t["id"] for t in data["added_tokens"]}))
    always = stated_token_ids(base, config)
    choose = partial(vocabulary.choose_tokens, data, counts, keep=inputs.terms, always=always)
    if settings.embedding_threshold is not None:
        least = int(settings.embedding_threshold * int(counts.sum())) + 1
    tokens = choose(min_count=least)
    if not settings.exact:
        return tuple(tokens)
    row = _row(config)
    removed = (config["vocab_size"] - len(tokens)) * row
    if removed > remove:  # a low sparsity is met by the rarest tokens alone
        return tuple(
            choose(size=min(len(vocabulary.read_vocabulary(data).ids), config["vocab_size"] - remove // row))
        )
    if settings.widths == "equal":
        sizes = _equal(config, remove - removed, settings, up=True)
        blocks = parameters_removed(config, [sizes] * config["num_hidden_layers"])
        return tuple(choose(size=config["vocab_size"] - max(0, remove - blocks) // row))
    return tuple(tokens)


def _row(config: dict[str, Any]) -> int:
    """Parameters of one token."""
    return int(config["hidden_size"]) * (1 if config.get("tie_word_embeddings") else 2)


def _equal(
    config: dict[str, Any], remove: int, settings: PruneSettings, *, up: bool = False
) -> tuple[int, int]:
    """(width, KV groups) of all blocks that remove about, or with `up` at least, `remove` parameters.

    KV groups are removed by the share of the blocks' parameters to remove, as far as transformers takes
    their number; FFN neurons give the rest.
    """
    neuron, group, _ = archs.load_arch(config).block_parameters(config)
    width, groups = (min(sizes) for sizes in zip(*block_sizes(config), strict=True))
    blocks = config["num_hidden_layers"]
    remove -= parameters_removed(config, [(width, groups)] * blocks)  # what makes blocks that differ equal
    share = max(0.0, remove / (blocks * (width * neuron + groups * group)))
    wanted = groups - int(share * groups)
    allowed = [groups] if settings.whole_attention else stock_groups(config)
    kept = min((number for number in allowed if number >= wanted), default=max(allowed))
    for number in (kept, *reversed([fewer for fewer in allowed if fewer < kept])):
        steps = (remove / blocks - (groups - number) * group) / (neuron * WIDTH_MULTIPLE)
        left = width - max(0, -int(-steps // 1) if up else round(steps)) * WIDTH_MULTIPLE
        if left >= WIDTH_MULTIPLE:
            return left, number
    most = parameters_removed(config, [(WIDTH_MULTIPLE, allowed[0])] * blocks)
    why = ""
    if allowed[0] > 1 and not settings.whole_attention:
        why = ", fewer of which transformers does not load"
    raise EdgeError(
        f"so much can't be removed: at least {WIDTH_MULTIPLE} FFN neurons and {allowed[0]} of {groups} KV "
        f"groups of every block are kept{why}, so the blocks can lose {most / 1e6:,.2f} M parameters",
        "ask for less, or trim more of the vocabulary with --min-count"
        + ("" if settings.whole_attention else ", or give --widths free"),
    )


def parameters_removed(config: dict[str, Any], blocks: Sequence[tuple[int, int]]) -> int:
    """Parameters that blocks of these (width, KV groups) lack."""
    neuron, group, _ = archs.load_arch(config).block_parameters(config)
    pairs = zip(block_sizes(config), blocks, strict=True)
    return sum((width - w) * neuron + (groups - g) * group for (width, groups), (w, g) in pairs)


@dataclass(frozen=True)
class Decision:
    """How much of each block is kept, or exactly what.

    Attributes:
        widths, kv_groups: how many neurons and KV groups of each block.
        exact: which.
        metrics: per block, gives the Fisher information of the outputs of attention and FFN, where that was
            measured.
        estimated: what removing costs; see `budget.decide_together`.
    """

    widths: list[int]
    kv_groups: list[int]
    exact: tuple[BlockPlan, ...] | None = None
    metrics: list[Callable[[], list[torch.Tensor]]] | None = None
    estimated: dict[str, Any] | None = None

    @classmethod
    def exactly(cls, blocks: tuple[BlockPlan, ...]) -> Decision:
        """To keep these KV groups and neurons."""
        return cls([len(b.neurons) for b in blocks], [len(b.kv_groups) for b in blocks], blocks)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(width, KV groups) of each block."""
        return list(zip(self.widths, self.kv_groups, strict=True))

    def keep(self, index: int) -> tuple[int, int] | tuple[tuple[int, ...], tuple[int, ...]]:
        """What a block keeps of its (KV groups, neurons): how many, or which."""
        if self.exact:
            return self.exact[index].kv_groups, self.exact[index].neurons
        return self.kv_groups[index], self.widths[index]


def decide(context: PruneContext, method: UnitScores) -> Decision:
    """Sizes, or exact units, of every block of a model whose vocabulary is trimmed already.

    `context.remove` parameters of the blocks are removed or, where there is a limit, as few as meet it.

    Raises:
        EdgeError: not enough can be removed.
    """
    config, settings = context.config, context.settings
    dense = block_sizes(config)
    if context.plan:
        pairs = zip(context.plan.blocks, dense, strict=True)
        if settings.whole_attention and any(len(b.kv_groups) < groups for b, (_, groups) in pairs):
            raise EdgeError(
                "the plan removes KV groups, which a target can't carry", "leave GGUF targets out"
            )
        return Decision.exactly(context.plan.blocks)
    if settings.threshold is not None:
        return _by_threshold(context, method, settings.threshold)
    if context.decision:
        if settings.exact:
            _check_sparsity(context, context.decision)
        return _by_scores(context, method, context.decision)
    neuron, _, _ = context.arch.block_parameters(config)
    fits, equal = _limit(context), settings.widths == "equal"
    made = Decision.exactly(tuple(context.whole_blocks()))
    if context.remove >= neuron * WIDTH_MULTIPLE if fits is None else not fits(made):
        # Equal sizes follow from arithmetic: what can't be met is known before anything is measured.
        choose = partial(_equal_decision, config, settings) if equal else _chooser(context, method)
        unit = neuron * WIDTH_MULTIPLE
        most = sum(width for width, _ in dense) // WIDTH_MULTIPLE
        made = choose(context.remove) if fits is None else least(choose, fits, unit, most)
    if settings.exact:
        _check_sparsity(context, made)
    return _by_scores(context, method, made) if equal else made


def _by_scores(context: PruneContext, method: UnitScores, made: Decision) -> Decision:
    """The decision with the units of the highest scores, if all blocks have to be scored before the first is
    pruned."""
    scores = None if made.sizes == block_sizes(context.config) else _scores(context, method)
    if scores is None:
        return made
    pairs = zip(scores, made.kv_groups, made.widths, strict=True)
    from minigpt_edge.prune.allocate import best_units

    return dataclasses.replace(made, exact=tuple(best_units(s, g, w) for s, g, w in pairs))


def _equal_decision(config: dict[str, Any], settings: PruneSettings, remove: int) -> Decision:
    width, groups = _equal(config, remove, settings)
    blocks = config["num_hidden_layers"]
    return Decision([width] * blocks, [groups] * blocks)


def _check_sparsity(context: PruneContext, decision: Decision) -> None:
    """EdgeError if what was asked for is missed by more than the tolerance and what sizes come in."""
    settings, config = context.settings, context.config
    neuron, _, _ = context.arch.block_parameters(config)
    step = WIDTH_MULTIPLE * neuron / context.dense
    if settings.widths == "equal":  # the vocabulary makes up for steps of all blocks, if it lacks enough
        step *= len(decision.widths) / 2
        rows = (config["vocab_size"] - len(context.tokens)) * _row(config) / context.dense
        step = step if rows < step else 0
    sparsity = 1 - kept_parameters(context, decision.sizes) / context.dense
    if abs(sparsity - settings.sparsity) > max(SPARSITY_TOLERANCE, step):
        raise EdgeError(
            f"the closest sparsity to {settings.sparsity:.2%} is {sparsity:.2%}",
            "ask for another --sparsity, or use --widths free",
        )


def _by_threshold(context: PruneContext, method: UnitScores, threshold: float) -> Decision:
    from minigpt_edge.prune.allocate import threshold_plan
    from minigpt_edge.prune.calibrate import score_blocks

    if method.threshold_scores is None:
        raise ValueError("the method has no threshold")
    progress = context.progress("activations")
    scores = score_blocks(context.model, context.arch, context.windows, method.threshold_scores, progress)
    exact = threshold_plan(scores, threshold, WIDTH_MULTIPLE)
    if context.settings.whole_attention:
        every = (tuple(range(groups)) for _, groups in block_sizes(context.config))
        exact = tuple(BlockPlan(all_, block.neurons) for all_, block in zip(every, exact, strict=True))
    return Decision.exactly(exact)


def _scores(context: PruneContext, method: UnitScores) -> BlockScores | None:
    """Scores of all blocks' units, where the method or one cut over all blocks needs them before the first
    block is pruned."""
    from minigpt_edge.prune.calibrate import score_blocks

    model, arch = context.model, context.arch
    if method.of_model:
        return method.of_model(model, arch, context.probe, context.progress("gradients"))
    if context.settings.widths == "global" and method.scores:
        return score_blocks(model, arch, context.windows, method.scores, context.progress("activations"))
    return None


def _chooser(context: PruneContext, method: UnitScores) -> Callable[[int], Decision]:
    """A function from parameters to remove to the units that are above one cut over all scores."""
    from minigpt_edge.prune.allocate import global_plan

    neuron, group, _ = context.arch.block_parameters(context.config)
    scores = _scores(context, method)
    if scores is None:
        raise ValueError("sizes by estimated loss are decided before the vocabulary is trimmed")
    plan = partial(global_plan, scores, neuron, group, multiple=WIDTH_MULTIPLE)
    return lambda remove: Decision.exactly(plan(remove))


def kept_parameters(context: PruneContext, blocks: Sequence[tuple[int, int]]) -> int:
    """Parameters of the model if its blocks had these (width, KV groups)."""
    from minigpt_edge.models.checkpoint import count_parameters

    return count_parameters(context.model) - parameters_removed(context.config, blocks)


def size_model(context: PruneContext, target: str) -> SizeModel:
    """Predicts the bytes of a target's file from sizes of blocks and the trimmed tokenizer."""
    tokenizer = context.directory / CHECKPOINT
    return SizeModel(context.inputs.base, tokenizer, parse_target(target), context.config)


def _limit(context: PruneContext) -> Callable[[Decision], bool] | None:
    """Whether a decision meets the limit, if there is one."""
    limit, tokens = context.settings.limit, len(context.tokens)
    if limit is None:
        return None
    if limit.kind == "parameters":
        return lambda decision: kept_parameters(context, decision.sizes) <= limit.value
    files = size_model(context, limit.target)
    if limit.kind == "bytes":
        return lambda decision: files.file_bytes(tokens, decision.sizes) + NAME_BYTES <= limit.value
    return lambda decision: files.speedup(tokens, decision.sizes) >= limit.value


def least(choose: Callable[[int], T], fits: Callable[[T], bool], unit: float, most: int) -> T:
    """The choice that removes the fewest multiples of `unit`, below `most` of them, and fits; by bisection.

    Raises:
        EdgeError: none fits.
    """
    low, high, best = 0, most, None
    while high - low > 1:
        middle = (low + high) // 2
        try:
            found = choose(round(middle * unit))
        except EdgeError:  # more than there is: less may still be enough
            high = middle
            continue
        if fits(found):
            high, best = middle, found
        else:
            low = middle
    if best is None:
        raise EdgeError(
            "even the smallest blocks do not meet the limit", "allow more, or trim more with --min-count"
        )
    return best
