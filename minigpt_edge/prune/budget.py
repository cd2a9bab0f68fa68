"""One budget, one currency: tokens, FFN neurons and KV groups are removed in the order of what each costs.

The cost is the expected rise of the held-out loss after recovery, for each unit of the budget: a parameter,
a byte of the file, or a byte that a decoded token reads. It is measured on the dense model, its vocabulary
whole. A token costs how often it is expected in unseen text times what an occurrence loses when it is spelled
in pieces; neurons and groups cost what `allocate.measure_costs` says; each times the share of such estimates
that is measured in the end (`unrecovered.py`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt_edge.models.sizes import block_sizes
from minigpt_edge.prune import decide
from minigpt_edge.prune.context import SPARSITY_TOLERANCE, WIDTH_MULTIPLE, PruneContext
from minigpt_edge.prune.decide import NAME_BYTES, Decision
from minigpt_edge.prune.sizing import Blocks, SizeModel
from minigpt_edge.prune.vocabulary import choose, expected
from minigpt_edge.prune.vocabulary.trim import stated_token_ids, trim_checkpoint
from minigpt_edge.stages import parallel
from minigpt_edge_export.targets import parse_target
from minigpt_edge_runtime.engines.text import open_tokenizer
from minigpt_edge_runtime.files import read_json
from minigpt_edge_runtime.formats.tokenizer_files import TOKENIZER

if TYPE_CHECKING:
    import numpy as np

    from minigpt_edge.prune.allocate import Costs, Prices, Sizes

TOKEN_STEP = 32  # tokens removed at once
MOST_LONGER = 0.15  # by which text may be expected to become longer: contexts and decoding pay for it
SPELLING_TOKENS = 4096  # of the probe, on which spelling is measured
NARROWEST = 4 * WIDTH_MULTIPLE
WHOLE_TYPES = 256  # FFN neurons that a price is an average of: K types take rows of so many


@dataclass(frozen=True)
class Texts:
    """The training documents in tokens of the dense model.

    Attributes:
        ids: token ids of each document, int64.
        size: bytes of all texts.
    """

    ids: Sequence[np.ndarray]
    size: int

    @property
    def tokens(self) -> int:
        """Tokens of all documents."""
        return sum(map(len, self.ids))


@dataclass(frozen=True)
class Tokens:
    """In which order tokens are removed, and what each costs.

    Attributes:
        rows: of the dense embedding.
        order: of removal.
        nats: what the first split of an occurrence costs.
        row: parameters of a token.
        decided: the user said which tokens are kept: all that the order keeps.
    """

    rows: int
    order: choose.RemovalOrder
    nats: float
    row: int
    decided: bool

    @property
    def most(self) -> int:
        """Tokens that may be kept; other rows of the embedding are no token's."""
        return len(self.order.kept) + (0 if self.decided else len(self.order.removed))

    def curve(self) -> list[tuple[int, float]]:
        """(tokens kept, nats per token of text that the others cost before recovery)."""
        count = int((self.order.longer.cumsum() <= MOST_LONGER).sum())
        lost = self.order.costs[:count].cumsum() * self.nats
        points = [*range(0, len(lost), TOKEN_STEP), len(lost)]
        return [(self.most - n, float(lost[n - 1]) if n else 0.0) for n in dict.fromkeys(points)]

    def lost(self, kept: int) -> float:
        """Nats per token of text that it costs, before recovery, to keep so many tokens."""
        count = len(self.order.kept) + len(self.order.removed) - kept
        return float(self.order.costs[:count].sum()) * self.nats


def decide_together(context: PruneContext, texts: Texts) -> tuple[tuple[int, ...], Decision]:
    """Kept token ids, ascending, and the blocks' sizes.

    Args:
        context: of the dense model, its vocabulary whole; `windows` are the probe.
        texts: of the training split.

    Raises:
        EdgeError: not so much can be removed, or what must be kept is not in the vocabulary.
    """
    from minigpt_edge.prune.allocate import measure_costs

    settings, model = context.settings, context.model
    tokens = _tokens(context, texts)
    costs = measure_costs(
        model, context.arch, context.windows, settings.seed, context.progress("sensitivity")
    )
    sizes = _choose(context, tokens, costs)
    kept, widths, groups = parallel.broadcast((sizes.tokens or tokens.most, sizes.widths, sizes.kv_groups))
    before = {
        "tokens": tokens.lost(kept),
        "neurons": sum(c.ffn[c.widths.index(w)] for c, w in zip(costs, widths, strict=True)),
        "groups": sum(c.attention[len(c.attention) - g] for c, g in zip(costs, groups, strict=True)),
    }
    estimated = {
        "before_recovery": before,
        "after_recovery": settings.unrecovered.of(before),
        "nats_of_a_split": tokens.nats,
        "base_tokens_per_byte": texts.tokens / texts.size,
    }
    metrics = [cost.metrics for cost in costs]
    return tokens.order.tokens(kept), Decision(widths, groups, None, metrics, estimated)


def _tokens(context: PruneContext, texts: Texts) -> Tokens:
    """How tokens are removed, those that the user wants kept excepted."""
    from minigpt_edge.prune.spelling import spelling_cost

    inputs, settings, config = context.inputs, context.settings, context.config
    data = read_json(inputs.base / TOKENIZER)
    words, tokenizer = choose.read_vocabulary(data), open_tokenizer(data)
    found = expected.find_occurrences(texts.ids, words.rows)
    rates = expected.expected_occurrences(found, sorted(words.ids.values()))
    always = stated_token_ids(inputs.base, config)
    required = choose.required_tokens(words, tokenizer, inputs.terms, always)
    order = choose.removal_order(words, rates, required)
    windows = context.windows[: max(1, SPELLING_TOKENS // context.windows.shape[1])]
    nats = spelling_cost(context.model, windows, words, order, context.progress("spelling"))
    decided = settings.min_count is not None or settings.embedding_threshold is not None
    if decided:
        kept = decide.choose_vocabulary(inputs, config, found.counts, context.remove)
        order = choose.removal_order(words, rates, set(kept))
    return Tokens(config["vocab_size"], order, nats, _row(context.model), decided)


def _row(model: Any) -> int:
    """Parameters of one token: of the embedding, of the head where it is another, of its bias."""
    head = model.get_output_embeddings()
    tables = {id(t): t for t in (model.get_input_embeddings().weight, head.weight)}.values()
    return sum(table.shape[1] for table in tables) + (getattr(head, "bias", None) is not None)


def _choose(context: PruneContext, tokens: Tokens, costs: list[Costs]) -> Sizes:
    """The sizes that cost least of those that meet what was asked for."""
    from minigpt_edge.prune.allocate import Sizes, allocate

    limit, shares = context.settings.limit, context.settings.unrecovered
    neuron, group, _ = context.arch.block_parameters(context.config)
    weighted = [cost.weighted(shares.neurons, shares.groups) for cost in costs]
    curve = [] if tokens.decided else [(kept, shares.tokens * lost) for kept, lost in tokens.curve()]
    whole = Sizes([c.widths[0] for c in costs], [len(c.attention) for c in costs], tokens.most)
    files = None if limit is None or limit.kind == "parameters" else _Files(context, tokens, limit.target)
    prices = files.prices(limit.kind) if files and limit else _prices(neuron, group, tokens.row)
    slack = SPARSITY_TOLERANCE * context.dense if files is None else 0
    unused = (tokens.rows - tokens.most) * prices.token

    def choose(remove: float) -> Sizes:
        if remove <= unused:
            return whole
        return allocate(weighted, prices, remove - unused, min_width=NARROWEST, slack=slack, tokens=curve)

    if limit is None:
        return choose(context.remove)
    fits = partial(_fits, context, tokens, files)
    if fits(whole):
        return whole
    step = min(WIDTH_MULTIPLE * prices.neuron, TOKEN_STEP * prices.token)
    sizes = block_sizes(context.config)
    most = sum(w * prices.neuron + g * prices.group for w, g in sizes) + tokens.rows * prices.token
    return decide.least(choose, fits, step, int(most / step) + 1)


def _prices(neuron: int, group: int, row: int) -> Prices:
    from minigpt_edge.prune.allocate import Prices

    return Prices(neuron, group, row)


def _pairs(sizes: Sizes) -> list[tuple[int, int]]:
    return list(zip(sizes.widths, sizes.kv_groups, strict=True))


def _fits(context: PruneContext, tokens: Tokens, files: _Files | None, sizes: Sizes) -> bool:
    """Whether sizes meet the limit."""
    limit, kept = context.settings.limit, sizes.tokens or tokens.most
    if limit is None:
        raise ValueError("there is no limit")
    if files is None:
        rows = (tokens.rows - kept) * tokens.row
        return decide.kept_parameters(context, _pairs(sizes)) - rows <= limit.value
    if limit.kind == "bytes":
        return files.bytes(kept, _pairs(sizes)) + NAME_BYTES <= limit.value
    return files.model.speedup(kept, _pairs(sizes)) >= limit.value


class _Files:
    """The files that sizes would become, the tokenizer trimmed to them."""

    def __init__(self, context: PruneContext, tokens: Tokens, target: str) -> None:
        base = context.inputs.base
        self.base, self.tokens = base, tokens
        self.model = SizeModel(base, base, parse_target(target), context.config)
        self.blocks = block_sizes(context.config)
        self._tokenizers: dict[int, int] = {}

    def bytes(self, kept: int, blocks: Blocks) -> int:
        """Of the file."""
        if kept not in self._tokenizers:
            with tempfile.TemporaryDirectory() as folder:
                trim_checkpoint(self.base, Path(folder), self.tokens.order.tokens(kept))
                self._tokenizers[kept] = self.model.tokenizer_bytes(kept, Path(folder))
        return self.model.file_bytes(kept, blocks, self._tokenizers[kept])

    def prices(self, kind: str) -> Prices:
        """Bytes of the file, or with "speedup" of a decoded token, that one unit has on average."""
        from minigpt_edge.prune.allocate import Prices

        rows, count = self.tokens.rows, len(self.blocks)
        name = 0.0
        weigh: Callable[[int, Blocks], int] = self.model.decode_bytes
        if kind == "bytes":
            weigh = partial(self.model.file_bytes, tokenizer=0)
            name = self.model.tokenizer_bytes(rows, self.base) / rows
        whole, fewer = weigh(rows, self.blocks), TOKEN_STEP * max(1, rows // TOKEN_STEP // 2)
        by = [WHOLE_TYPES if width > WHOLE_TYPES else WIDTH_MULTIPLE for width, _ in self.blocks]
        narrow = [(max(1, w - n), g) for (w, g), n in zip(self.blocks, by, strict=True)]
        single = [(w, max(1, g - 1)) for w, g in self.blocks]
        row = (whole - weigh(rows - fewer, self.blocks)) / fewer
        group = (whole - weigh(rows, single)) / count
        return Prices((whole - weigh(rows, narrow)) / sum(by), max(group, 1.0), row + name)
