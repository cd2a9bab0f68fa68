"""How much goes, and where: the vocabulary first, then the sizes of the blocks, under one budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt_edge.models import archs
from minigpt_edge.prune.methods.registry import Method
from minigpt_edge.prune.plan import BlockPlan, Plan
from minigpt_edge.prune.vocabulary import choose as vocabulary
from minigpt_edge.prune.vocabulary.trim import config_token_ids
from minigpt_edge_runtime.engines.text import open_tokenizer
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.files import read_json
from minigpt_edge_runtime.formats.tokenizer_files import GENERATION_CONFIG, TOKENIZER

if TYPE_CHECKING:
    import torch

    from minigpt_edge.models.archs.base import Arch
    from minigpt_edge.prune.calibrate import Wanted

WIDTH_MULTIPLE = 32  # the block of the 32-wide quantization types
SENSITIVITY_TOKENS = 8192
SPARSITY_TOLERANCE = 0.005
NAME_BYTES = 512  # of a GGUF file, kept free for what it says about itself

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Limit:
    """A budget that is not a sparsity: "parameters" or "bytes" of the file at most, "speedup" of decoding
    at least.

    `target` names the file format and type that bytes and speed are reckoned for.
    """

    kind: str
    value: float
    target: str


@dataclass(frozen=True)
class ShrinkSettings:
    """What decides the result of pruning, besides the model and the corpus.

    Attributes:
        sparsity: fraction of the parameters that go (of the blocks' matrices, for masks).
        limit: in place of `sparsity`.
        threshold: in place of `sparsity`, for the contextual method: mean |activation| of what goes.
        pattern: "structured", "unstructured", "n:m", "blocks", "rank".
        widths: "free", "equal" or "global"; see `Method.widths`.
        min_count: tokens seen less often go; 0 keeps all.
        reductions: of the method laser, such as "26:up:0.1"; "" searches.
        whole_attention: no KV group goes, since a target could not carry it.
        embedding_threshold: tokens whose share of the training tokens is not above it go; None for min_count.
    """

    sparsity: float
    method: str
    widths: str
    min_count: int
    calibration_tokens: int
    window: int
    seed: int
    threads: int
    pattern: str = "structured"
    compensation: str | None = None
    limit: Limit | None = None
    threshold: float | None = None
    reductions: str = ""
    embedding_threshold: float | None = None
    whole_attention: bool = False
    width_multiple: int = WIDTH_MULTIPLE

    @property
    def exact(self) -> bool:
        """Whether a fraction of the parameters is what was asked for."""
        return self.limit is None and self.threshold is None


def choose_vocabulary(
    base: Path,
    config: dict[str, Any],
    documents: Sequence[str],
    settings: ShrinkSettings,
    remove: int,
    terms: Sequence[str],
) -> tuple[int, ...]:
    """Kept token ids. Where the blocks can't meet the sparsity exactly, the vocabulary's size does."""
    data = read_json(base / TOKENIZER)
    by_share = settings.embedding_threshold is not None
    if (settings.exact and remove <= 0) or (settings.min_count == 0 and not by_share):
        return tuple(sorted(set(data["model"]["vocab"].values()) | {t["id"] for t in data["added_tokens"]}))
    generation = base / GENERATION_CONFIG
    always = config_token_ids(config, read_json(generation) if generation.exists() else {})
    counts = vocabulary.count_tokens(open_tokenizer(data), documents)
    choose = partial(vocabulary.choose_tokens, data, counts, keep=terms, always=always)
    least = settings.min_count
    if settings.embedding_threshold is not None:
        least = int(settings.embedding_threshold * int(counts.sum())) + 1
    tokens = choose(min_count=least)
    if not settings.exact:
        return tuple(tokens)
    row = row_parameters(config)
    gone = config["vocab_size"] - len(tokens)
    if gone * row > remove:  # a low sparsity is met by the rarest tokens alone
        return tuple(
            choose(size=min(len(vocabulary.read_vocabulary(data).ids), config["vocab_size"] - remove // row))
        )
    if settings.widths == "equal":
        left = remove - gone * row
        taken = _taken(config, _equal(config, left, settings, up=True))
        return tuple(choose(size=config["vocab_size"] - max(0, remove - taken) // row))
    return tuple(tokens)


def row_parameters(config: dict[str, Any]) -> int:
    """Parameters of one token: a row of the embedding, and of the head where it is not tied."""
    return int(config["hidden_size"]) * (1 if config.get("tie_word_embeddings") else 2)


def _equal(
    config: dict[str, Any], remove: int, settings: ShrinkSettings, *, up: bool = False
) -> tuple[int, int]:
    """(width, KV groups) of all blocks that remove about, or with `up` at least, `remove` parameters.

    KV groups go by the share of the blocks' parameters that goes; FFN neurons give the rest.
    """
    multiple = settings.width_multiple
    neuron, group, _ = archs.load_arch(config).block_parameters(config)
    width, groups, blocks = (
        config[key] for key in ("intermediate_size", "num_key_value_heads", "num_hidden_layers")
    )
    share = max(0.0, remove / (blocks * (width * neuron + groups * group)))
    kept = groups if settings.whole_attention else max(1, groups - int(share * groups))
    steps = (remove / blocks - (groups - kept) * group) / (neuron * multiple)
    left = width - max(0, -int(-steps // 1) if up else round(steps)) * multiple
    if left < multiple:
        raise EdgeError("so much can't go: no FFN neurons would be left", "ask for less")
    return left, kept


def _taken(config: dict[str, Any], sizes: tuple[int, int]) -> int:
    """Parameters that blocks of equal (width, KV groups) lack."""
    neuron, group, _ = archs.load_arch(config).block_parameters(config)
    width, kept = sizes
    lost = (config["intermediate_size"] - width) * neuron + (config["num_key_value_heads"] - kept) * group
    return int(lost) * int(config["num_hidden_layers"])


@dataclass(frozen=True)
class Decision:
    """What every block keeps, and what gives its outputs' Fisher information where that was measured."""

    wanted: Wanted
    metrics: list[Callable[[], list[torch.Tensor]]] | None = None


def decide(
    model: Any,
    arch: Arch,
    config: dict[str, Any],
    windows: torch.Tensor,
    settings: ShrinkSettings,
    method: Method,
    remove: int,
    plan: Plan | None,
    fits: Callable[[Wanted], bool] | None,
    on_progress: Progress,
) -> Decision:
    """Sizes, or exact units, of every block of a model whose vocabulary is trimmed already.

    Args:
        remove: parameters of the blocks that have to go, where `fits` is None.
        fits: whether a choice is within the limit; the choice that removes least and fits is taken.

    Raises:
        EdgeError: not enough can go.
    """
    from minigpt_edge.prune.calibrate import Wanted

    blocks = config["num_hidden_layers"]
    full = [config["intermediate_size"]] * blocks, [config["num_key_value_heads"]] * blocks
    neuron, _, _ = arch.block_parameters(config)
    if plan:
        if settings.whole_attention and any(len(b.kv_groups) < full[1][0] for b in plan.blocks):
            raise EdgeError(
                "the plan removes KV groups, which a target can't carry", "leave GGUF targets out"
            )
        return Decision(Wanted(*full, exact=plan.blocks))
    if settings.threshold is not None:
        return Decision(_by_threshold(model, arch, windows, settings, full, on_progress))
    enough = remove < neuron * settings.width_multiple if fits is None else fits(Wanted(*full))
    if enough:
        return Decision(Wanted(*full))
    choose, metrics = _chooser(model, arch, config, windows, settings, method, on_progress)
    return Decision(choose(remove) if fits is None else _least(choose, fits, config, neuron), metrics)


def _by_threshold(
    model: Any,
    arch: Arch,
    windows: torch.Tensor,
    settings: ShrinkSettings,
    full: tuple[list[int], list[int]],
    on_progress: Progress,
) -> Wanted:
    from minigpt_edge.prune.allocate import threshold_plan
    from minigpt_edge.prune.calibrate import Wanted, score_blocks
    from minigpt_edge.prune.methods.contextual import mean_l1

    scores = score_blocks(model, arch, windows, mean_l1, partial(on_progress, "activations"))
    exact = threshold_plan(scores, settings.threshold or 0.0, settings.width_multiple)
    if settings.whole_attention:
        exact = tuple(BlockPlan(tuple(range(full[1][0])), block.neurons) for block in exact)
    return Wanted(*full, exact=exact)


def _chooser(
    model: Any,
    arch: Arch,
    config: dict[str, Any],
    windows: torch.Tensor,
    settings: ShrinkSettings,
    method: Method,
    on_progress: Progress,
) -> tuple[Callable[[int], Wanted], list[Callable[[], list[torch.Tensor]]] | None]:
    """A function from parameters to remove to what stays; what it needs is measured here, once."""
    from minigpt_edge.prune.allocate import allocate, best_units, global_plan, measure_costs
    from minigpt_edge.prune.calibrate import Wanted, score_blocks

    neuron, group, _ = arch.block_parameters(config)
    multiple, blocks = settings.width_multiple, config["num_hidden_layers"]
    probe = windows[: max(1, SENSITIVITY_TOKENS // windows.shape[1])]
    scores = metrics = None
    if "gradient" in method.reads:
        from minigpt_edge.prune.methods import taylor

        scores = taylor.unit_scores(model, arch, probe, partial(on_progress, "gradients"))
    elif settings.widths == "global":
        scores = score_blocks(model, arch, windows, method.scores, partial(on_progress, "activations"))
    if settings.widths == "free":
        costs = measure_costs(
            model, arch, probe, multiple, settings.seed, partial(on_progress, "sensitivity")
        )
        metrics = [cost.metrics for cost in costs]
        slack = int(SPARSITY_TOLERANCE * sum(parameter.numel() for parameter in model.parameters()))

    def choose(remove: int) -> Wanted:
        if settings.widths == "global" and scores:
            plans = global_plan(scores, neuron, group, remove, multiple)
            return Wanted([len(p.neurons) for p in plans], [len(p.kv_groups) for p in plans], plans)
        if settings.widths == "free":
            widths, kept = allocate(costs, neuron, group, remove, min_width=4 * multiple, slack=slack)
        else:
            width, groups = _equal(config, remove, settings)
            widths, kept = [width] * blocks, [groups] * blocks
        exact = None
        if scores:
            exact = tuple(best_units(s, g, w) for s, g, w in zip(scores, kept, widths, strict=True))
        return Wanted(widths, kept, exact)

    return choose, metrics


def _least(
    choose: Callable[[int], Wanted], fits: Callable[[Wanted], bool], config: dict[str, Any], neuron: int
) -> Wanted:
    """The choice that removes the fewest parameters and fits, found by bisection."""
    unit = neuron * WIDTH_MULTIPLE
    high = config["num_hidden_layers"] * config["intermediate_size"] // WIDTH_MULTIPLE
    low, best = 0, None
    while high - low > 1:
        middle = (low + high) // 2
        try:
            found = choose(middle * unit)
        except EdgeError:  # more than the blocks have: less may still be enough
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
