"""What of pruning costs what: the model's quality between its parts, on the validation windows.

Measured where the model is in memory; one whose blocks are on disk would be read as often again.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minigpt_edge.models.sizes import block_sizes
from minigpt_edge.prune.context import CHECKPOINT, PruneContext, Pruned
from minigpt_edge.prune.methods.registry import pruner_of

VOCABULARY, NEURONS = "vocabulary", "neurons"


def vocabulary_quality(context: PruneContext, texts: Path) -> dict[str, dict[str, float]]:
    """The dense blocks under the trimmed vocabulary: {"vocabulary": see `perplexity.summary`}.

    Returns:
        Nothing where no token was removed, or the blocks are on disk.
    """
    if len(context.tokens) == context.config["vocab_size"] or _on_disk(context):
        return {}
    return {VOCABULARY: _evaluate(context, texts)}


def neurons_quality(context: PruneContext, pruned: Pruned, texts: Path) -> dict[str, dict[str, float]]:
    """The pruned model with the dense attention of every block that lost KV groups: {"neurons": likewise}.

    Returns:
        Nothing unless neurons and KV groups were removed, or where the blocks are on disk.
    """
    dense = block_sizes(context.config)
    if not pruner_of(context.settings).sized or _on_disk(context) or len(pruned.blocks) != len(dense):
        return {}
    pairs = list(zip(pruned.blocks, dense, strict=True))
    cut = [index for index, (block, (_, groups)) in enumerate(pairs) if len(block.kv_groups) < groups]
    if not cut or all(len(block.neurons) == width for block, (width, _) in pairs):
        return {}
    with _dense_attention(context, cut):
        return {NEURONS: _evaluate(context, texts)}


def _on_disk(context: PruneContext) -> bool:
    from minigpt_edge.models.resident import is_offloaded

    return is_offloaded(context.model, context.arch)


def _evaluate(context: PruneContext, texts: Path) -> dict[str, float]:
    from minigpt_edge.evaluation.perplexity import evaluate_model

    return evaluate_model(context.model, context.directory / CHECKPOINT, texts)


@contextmanager
def _dense_attention(context: PruneContext, indices: list[int]) -> Iterator[None]:
    """The context's model, in memory, with the dense model's attention in some blocks."""
    from minigpt_edge.models.forward import load_fast
    from minigpt_edge.models.resident import resident

    arch = context.arch
    model: Any = load_fast(context.inputs.base, lazy=True)
    ours, dense = arch.blocks(context.model), arch.blocks(model)
    pruned = {index: ours[index].get_submodule(arch.attention) for index in indices}
    try:
        for index in indices:
            with resident(dense[index]) as block:
                ours[index].set_submodule(arch.attention, copy.deepcopy(block.get_submodule(arch.attention)))
        yield
    finally:
        for index, attention in pruned.items():
            ours[index].set_submodule(arch.attention, attention)
