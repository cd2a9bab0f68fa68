"""Torch-Pruning as its LLM example does it: uniform widths, so that transformers can load them.

The example prunes the hidden size, the query heads and the FFN in one ratio by group magnitude; "width"
variants leave the hidden size. Taylor importance is the library's; its gradients are of the language model
loss on the calibration windows.

Limits of 1.6.1: it sees repeated KV heads only in eager attention. With grouped queries the KV heads stay,
and as many query heads go from each group; if only one stayed in each, the library would take it for
ungrouped attention and silently leave all, so two is the least.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import prune_common

VARIANTS = ("example, magnitude", "example, taylor", "width, magnitude", "width, taylor")
ROUND_TO = 4  # the example's


def main() -> None:
    """Prune, repair the config, save."""
    given = prune_common.arguments(VARIANTS)
    import torch_pruning

    model = prune_common.load_model(given.checkpoint)
    model.config.use_cache = False
    scope, _, importance = given.variant.partition(", ")
    ratio = choose_ratio(model.config, scope, given.fraction)
    heads_ratio = head_ratio(model.config, ratio)
    with prune_common.measuring() as record:
        if importance == "taylor":
            add_gradients(model, given)
            score = torch_pruning.importance.GroupTaylorImportance()
        else:
            score = torch_pruning.importance.GroupMagnitudeImportance(p=2, group_reduction="mean")
        prune(model, score, scope, ratio, heads_ratio)
        repair(model)
    record |= {
        "importance": type(score).__name__,
        "pruning_ratio": ratio,
        "head_pruning_ratio": heads_ratio,
        "round_to": ROUND_TO,
    }
    prune_common.save_model(model, given, record)


def head_ratio(config: Any, ratio: float) -> float:
    """The ratio for heads: the same, as far as two query heads stay for each KV head."""
    heads = config.num_attention_heads
    return min(ratio, (heads - 2 * config.num_key_value_heads) / heads)


def sizes(config: Any, scope: str, ratio: float) -> tuple[int, int, int]:
    """(hidden size, query heads, FFN width) that the library leaves at a ratio."""

    def kept(size: int) -> int:
        whole = int(size * (1 - ratio))
        return whole - whole % ROUND_TO

    heads, groups = config.num_attention_heads, config.num_key_value_heads
    gone = math.ceil(math.ceil(head_ratio(config, ratio) * heads) / groups) * groups
    hidden = kept(config.hidden_size) if scope == "example" else config.hidden_size
    return hidden, heads - gone, kept(config.intermediate_size)


def parameters(config: Any, hidden: int, heads: int, width: int) -> int:
    """Parameters of a LLaMA model with tied embeddings."""
    head, groups = config.head_dim, config.num_key_value_heads
    block = hidden * (2 * heads * head + 2 * groups * head + 3 * width + 2)
    return config.num_hidden_layers * block + hidden * (config.vocab_size + 1)


def choose_ratio(config: Any, scope: str, fraction: float) -> float:
    """The ratio that comes closest to removing this fraction of all parameters."""
    dense = (config.hidden_size, config.num_attention_heads, config.intermediate_size)
    wanted = (1 - fraction) * parameters(config, *dense)
    ratios = [thousandths / 1000 for thousandths in range(1000)]
    return min(ratios, key=lambda ratio: abs(parameters(config, *sizes(config, scope, ratio)) - wanted))


def add_gradients(model: Any, given: argparse.Namespace) -> None:
    """Sum the loss's gradients over the calibration windows, in bfloat16 products."""
    import torch

    for batch in prune_common.read_batches(given.windows):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**batch, labels=batch["input_ids"]).loss
        loss.backward()


def prune(model: Any, score: Any, scope: str, ratio: float, heads_ratio: float) -> None:
    """Remove heads, neurons and, in the example's scope, hidden channels."""
    import torch
    import torch_pruning

    model.set_attn_implementation("eager")
    config, blocks = model.config, model.model.layers
    heads = {}
    for block in blocks:
        attention = block.self_attn
        heads[attention.q_proj] = config.num_attention_heads
        heads[attention.k_proj] = heads[attention.v_proj] = config.num_key_value_heads
    ignored = [model.lm_head]
    if scope != "example":
        ignored += [block.mlp.down_proj for block in blocks]
    pruner = torch_pruning.pruner.BasePruner(
        model,
        example_inputs=torch.arange(64)[None],
        importance=score,
        global_pruning=False,
        output_transform=lambda out: out.logits,
        pruning_ratio=ratio,
        ignored_layers=ignored,
        num_heads=heads,
        prune_num_heads=True,
        prune_head_dims=False,
        head_pruning_ratio=heads_ratio,
        round_to=ROUND_TO,
    )
    for group in pruner.step(interactive=True):
        group.prune()


def repair(model: Any) -> None:
    """Tell the config the new sizes, as the example does, and tie the head again."""
    block, config = model.model.layers[0], model.config
    config.hidden_size = model.lm_head.in_features
    config.intermediate_size = block.mlp.gate_proj.out_features
    config.num_attention_heads = block.self_attn.q_proj.out_features // config.head_dim
    config.use_cache = True
    model.lm_head.weight = model.model.embed_tokens.weight


if __name__ == "__main__":
    main()
