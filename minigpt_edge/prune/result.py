"""What pruning leaves: a checkpoint, its plan and importance matrix, and figures; or those it would have."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minigpt_edge.models.sizes import block_sizes
from minigpt_edge.prune.context import (
    CHECKPOINT,
    IMPORTANCE,
    PLAN,
    PruneContext,
    Pruned,
    PruneInputs,
)
from minigpt_edge.prune.decide import decide, kept_parameters, size_model
from minigpt_edge.prune.methods.registry import pruner_of
from minigpt_edge.prune.plan import Plan, write_plan
from minigpt_edge.prune.prepare import prepare
from minigpt_edge.prune.units import UnitPruner
from minigpt_edge_runtime.errors import UsageError
from minigpt_edge_runtime.formats.gguf_names import EMBEDDING, HEAD


def write_pruned(context: PruneContext, pruned: Pruned) -> dict[str, Any]:
    """Write `checkpoint/`, `plan.json`, `imatrix.safetensors` and, where known, the dense model's states.

    Where parameters were removed, what is left gets another order first (`order`), unless it is whole blocks
    whose numbers are those of a quantized file, which would be lost.

    Returns:
        Metrics: parameters, sparsity, sizes per block, held-out errors, what the method reports.
    """
    import torch
    from safetensors.torch import save_file

    from minigpt_edge.models.checkpoint import count_parameters, save_factors, save_model
    from minigpt_edge.models.dense_states import DENSE_STATES, save_states
    from minigpt_edge.prune.order import deal_inputs, lies_on_grid

    out, config = context.directory, context.config
    plan = Plan(
        context.inputs.fingerprint,
        context.plan.method if context.plan else context.settings.method,
        context.tokens,
        tuple(pruned.blocks),
        (context.dense, count_parameters(context.model)),
    )
    if pruned.dense is not None:  # with the dense model's head, whose columns are still in its order
        save_states(context.windows, pruned.dense, context.model, out / DENSE_STATES)
    importance, model, arch = pruned.importance, context.model, context.arch
    sizes = [(len(block.neurons), len(block.kv_groups)) for block in pruned.blocks]
    cut = sizes != block_sizes(config)
    if pruner_of(context.settings).removes and (cut or not lies_on_grid(model, arch)):
        with torch.inference_mode():  # as pruning made the tensors
            importance = deal_inputs(model, arch, importance)
    save_model(model, out / CHECKPOINT, out / CHECKPOINT)
    if pruned.factors:
        save_factors(out / CHECKPOINT, pruned.factors)
    unused = HEAD if config.get("tie_word_embeddings") else EMBEDDING
    entries = {n: squares.float().cpu().contiguous() for n, squares in importance.items() if n != unused}
    save_file(entries, out / IMPORTANCE)
    write_plan(plan, out / PLAN)
    return {
        **_figures(context, plan.parameters[1], sizes),
        "held_out_errors": [
            {name: round(value, 5) for name, value in error.items()} for error in pruned.errors
        ],
        **pruned.metrics,
    }


def preview(inputs: PruneInputs, targets: Sequence[str]) -> dict[str, Any]:
    """What a structured method would keep, and how large the targets' files would be; nothing is pruned.

    Returns:
        {"vocabulary", "widths", "kv_groups", "parameters", "sparsity", "targets"}; of each target "type",
        "bytes" and "speedup" of decoding over the dense model at the same type, predicted from bytes read.

    Raises:
        UsageError: the method removes no units.
    """
    pruner = pruner_of(inputs.settings)
    if not isinstance(pruner, UnitPruner):
        raise UsageError("--dry-run is for methods that remove units", "leave it out")
    with tempfile.TemporaryDirectory() as name:
        context, method = pruner.compensated(prepare(inputs, Path(name)))
        sizes, predicted = decide(context, method).sizes, {}
        for target in targets:
            files = size_model(context, target)
            predicted[target] = {
                "type": files.kind,
                "bytes": files.file_bytes(len(context.tokens), sizes),
                "speedup": files.speedup(len(context.tokens), sizes),
            }
        return {**_figures(context, kept_parameters(context, sizes), sizes), "targets": predicted}


def _figures(context: PruneContext, kept: int, sizes: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Parameters, and the vocabulary, widths and KV groups: the dense model's (a number, or one for each
    block) and what is kept of them."""
    config = context.config
    dense = zip(*block_sizes(config), strict=True)
    widths, groups = (before[0] if len(set(before)) == 1 else list(before) for before in dense)
    return {
        "parameters": {"dense": context.dense, "kept": kept},
        "sparsity": 1 - kept / context.dense,
        "vocabulary": [config["vocab_size"], len(context.tokens)],
        "widths": [widths, [kept for kept, _ in sizes]],
        "kv_groups": [groups, [kept for _, kept in sizes]],
    }
