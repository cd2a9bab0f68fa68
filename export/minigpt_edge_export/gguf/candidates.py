"""Which types of a GGUF family are worth trying on a model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minigpt_edge_export.decoder import Decoder
from minigpt_edge_export.targets import QUANTIZATIONS, Target


def candidates(target: Target, decoder: Decoder, *, imatrix: bool = True) -> list[str]:
    """The types of a target that are worth trying on a model.

    Dropped are, in this order: types that need an importance matrix where there is none; types that give
    every tensor the type that an earlier one gives it; and types of which most of the blocks' weights would
    fall back to others. If all would, the one with the smallest file is left, so a family never comes out
    empty.

    Args:
        imatrix: whether there will be an importance matrix.
    """
    from minigpt_edge_export.gguf.quantize import expected_bytes, expected_types

    if target.exact:
        return list(target.types)
    plans: dict[str, dict[str, str]] = {}
    for name in target.types:
        if imatrix or not QUANTIZATIONS[name].needs_imatrix:
            plan = expected_types(decoder, name, imatrix=imatrix)
            if plan not in plans.values():
                plans[name] = plan
    kept = [name for name, plan in plans.items() if _own_share(name, plan, decoder) >= 0.5]
    return kept or [min(plans, key=lambda name: expected_bytes(decoder, plans[name]))]


def _own_share(name: str, plan: Mapping[str, str], decoder: Decoder) -> float:
    """The share of the blocks' matrix weights that did not fall back from 256-blocks to smaller ones."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    from minigpt_edge_export.gguf.layout import tensor_shapes

    own = total = 0
    for tensor, shape in tensor_shapes(decoder).items():
        if tensor.startswith("blk.") and len(shape) > 1:
            block_size, _ = GGML_QUANT_SIZES[GGMLQuantizationType[plan[tensor]]]
            total += math.prod(shape)
            own += math.prod(shape) if block_size >= QUANTIZATIONS[name].multiple else 0
    return own / total
