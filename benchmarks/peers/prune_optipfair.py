"""optipfair: FFN neurons by peak-to-peak magnitude ("MAW"), with calibration data or without; blocks; both.

With a dataloader MAW is combined with activation norms, the library's data-driven mode. Blocks go in the
order of `analyze_layer_importance` on the same data, or from the end. "depth, width" is its documented
pipeline: blocks first, here half of the parameters, then neurons of those that stay.
"""

from __future__ import annotations

from typing import Any

import prune_common

VARIANTS = ("width", "width, data", "depth, last", "depth, data", "depth, width, data")


def main() -> None:
    """Prune by one variant, save."""
    given = prune_common.arguments(VARIANTS)
    import optipfair
    import torch

    model = prune_common.load_model(given.checkpoint)
    goal = given.fraction * optipfair.count_parameters(model)
    batches = prune_common.read_batches(given.windows)
    kinds = given.variant.split(", ")
    record: dict[str, Any]
    with prune_common.measuring() as record, torch.autocast("cpu", torch.bfloat16):
        if "depth" in kinds:
            share = 0.5 if "width" in kinds else 1.0
            model, gone = cut_depth(model, share * goal, batches if "data" in kinds else None)
            record["blocks_removed"] = gone
            goal -= len(gone) * block_parameters(model)
        if "width" in kinds:
            percent = 100 * goal / ffn_parameters(model)
            model = optipfair.prune_model(
                model,
                pruning_type="MLP_GLU",
                neuron_selection_method="MAW",
                pruning_percentage=percent,
                dataloader=batches if "data" in kinds else None,
                show_progress=False,
            )
            record |= {"neuron_selection_method": "MAW", "pruning_percentage": percent}
    prune_common.save_model(model, given, record)


def cut_depth(model: Any, goal: float, batches: list[dict[str, Any]] | None) -> tuple[Any, list[int]]:
    """Remove as many blocks as come closest to `goal` parameters: the least important, or the last."""
    import optipfair

    count = round(goal / block_parameters(model))
    blocks = range(model.config.num_hidden_layers)
    if batches is None:
        gone = list(blocks)[-count:]
    else:
        importance = optipfair.analyze_layer_importance(model, batches, show_progress=False)
        gone = sorted(sorted(blocks, key=importance.__getitem__)[:count])
    pruned = optipfair.prune_model(model, pruning_type="DEPTH", layer_indices=gone, show_progress=False)
    return pruned, gone


def block_parameters(model: Any) -> int:
    return sum(p.numel() for p in model.model.layers[0].parameters())


def ffn_parameters(model: Any) -> int:
    return sum(p.numel() for block in model.model.layers for p in block.mlp.parameters())


if __name__ == "__main__":
    main()
