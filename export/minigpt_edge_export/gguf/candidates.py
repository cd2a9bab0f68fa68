"""Which types of a GGUF family are worth trying on a model."""

from __future__ import annotations

import math
from collections.abc import Mapping

from minigpt_edge_export.decoder import Decoder
from minigpt_edge_export.gguf.layout import tensor_shapes
from minigpt_edge_export.gguf.quantize import TYPES, expected_bytes, expected_types
from minigpt_edge_export.targets import QUANTIZATIONS, Target
from minigpt_edge_runtime.formats.gguf_names import BLOCK


def candidates(target: Target, decoder: Decoder, *, imatrix: bool = True) -> list[str]:
    """The types of a target that are worth trying on a model.

    Dropped are, in this order: types that need an importance matrix where there is none; types that give
    every tensor the type that an earlier one gives it; and types of which most of the blocks' weights would
    fall back to others. If all would, the one with the smallest file is left, so a family never comes out
    empty.

    Args:
        imatrix: whether there will be an importance matrix.
    """
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
    own = total = 0
    for tensor, shape in tensor_shapes(decoder).items():
        if tensor.startswith(f"{BLOCK}.") and len(shape) > 1:
            total += math.prod(shape)
            own += math.prod(shape) if TYPES[plan[tensor]].block >= QUANTIZATIONS[name].multiple else 0
    return own / total
