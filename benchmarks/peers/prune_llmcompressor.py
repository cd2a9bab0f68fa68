"""llm-compressor's masks: SparseGPT and Wanda, unstructured and 2:4, with its modifiers' default settings.

Zeros make no file smaller: the checkpoint keeps its size. "42" variants put as many zeros into the linear
layers as makes `--fraction` of all parameters; the embedding, which is the head too, is left alone, as its
documentation advises.
"""

from __future__ import annotations

from typing import Any

import prune_common

VARIANTS = ("sparsegpt, 2:4", "sparsegpt, 50 %", "sparsegpt, 42", "wanda, 2:4", "wanda, 50 %", "wanda, 42")


def main() -> None:
    """Sparsify, save without compression."""
    given = prune_common.arguments(VARIANTS)
    from llmcompressor import oneshot
    from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
    from torch.utils.data import DataLoader

    model = prune_common.load_model(given.checkpoint)
    method, _, amount = given.variant.partition(", ")
    options: dict[str, Any] = {"sparsity": 0.5, "targets": ["Linear"], "ignore": ["re:.*lm_head"]}
    options["mask_structure"] = "2:4" if amount == "2:4" else "0:0"
    if amount == "42":
        options["sparsity"] = given.fraction * model.num_parameters() / linear_parameters(model)
    modifier = {"sparsegpt": SparseGPTModifier, "wanda": WandaPruningModifier}[method](**options)
    batches = prune_common.read_batches(given.windows)
    with prune_common.measuring() as record:
        oneshot(
            model=model,
            dataset=DataLoader(batches, batch_size=None),
            num_calibration_samples=len(batches),
            recipe=modifier,
        )
    record |= {"modifier": type(modifier).__name__, **options}
    save = model.save_pretrained
    model.save_pretrained = lambda out: save(out, save_compressed=False)
    prune_common.save_model(model, given, record)


def linear_parameters(model: Any) -> int:
    """Parameters of the blocks' matrices."""
    return sum(p.numel() for block in model.model.layers for p in block.parameters() if p.dim() == 2)


if __name__ == "__main__":
    main()
