"""What a model can be exported to: families such as gguf-q4, onnx-int4, and exact types such as gguf-iq4_nl.

llama.cpp never refuses a width. A matrix whose rows are not a multiple of the type's block silently gets
another type: 256-blocks become Q4_0 (from Q2_K, Q3_K), Q5_0 (Q4_K), Q5_1 (Q5_K), Q8_0 (Q6_K) or IQ4_NL (IQ
types), and what does not divide by 32 either stays F16. Rows are hidden_size, each block's intermediate_size,
and heads x head_dim. `candidates` therefore asks llama.cpp which types a model would really get.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minigpt_edge_export.onnx_weights import Precision
from minigpt_edge_runtime.errors import UsageError

if TYPE_CHECKING:
    from minigpt_edge_export.spec import Decoder


@dataclass(frozen=True)
class Quantization:
    """One of llama.cpp's recipes: what rows must divide by, and whether it refuses without an imatrix."""

    multiple: int
    needs_imatrix: bool = False


# Left out: mxfp4_moe (for experts; a dense model gets Q8_0); nvfp4, q1_0, q2_0 (too few builds read them).
QUANTIZATIONS: dict[str, Quantization] = {
    **{name: Quantization(1) for name in ("f32", "f16", "bf16")},
    **{name: Quantization(32) for name in ("q8_0", "q5_0", "q5_1", "q4_0", "q4_1", "iq4_nl")},
    **{name: Quantization(256) for name in ("q6_k", "q5_k_m", "q5_k_s", "q4_k_m", "q4_k_s", "iq4_xs")},
    **{
        name: Quantization(256)
        for name in ("q3_k_l", "q3_k_m", "q3_k_s", "iq3_m", "iq3_s", "q2_k", "tq2_0", "tq1_0")
    },
    **{name: Quantization(256, True) for name in ("iq3_xs", "iq3_xxs", "q2_k_s", "iq2_m", "iq2_s", "iq2_xs")},
    **{name: Quantization(256, True) for name in ("iq2_xxs", "iq1_m", "iq1_s")},
}
UNQUANTIZED = ("f32", "f16", "bf16")
_FAMILIES: dict[str, tuple[str, ...]] = {
    "q8": ("q8_0",),
    "q6": ("q6_k",),
    "q5": ("q5_0", "q5_1", "q5_k_s", "q5_k_m"),
    "q4": ("q4_0", "iq4_nl", "iq4_xs", "q4_k_s", "q4_k_m", "q4_1"),
    "q3": ("q3_k_s", "q3_k_m", "q3_k_l", "iq3_xs", "iq3_s", "iq3_m"),
    "q2": ("q2_k_s", "q2_k", "iq2_xs", "iq2_s", "iq2_m"),
}


@dataclass(frozen=True)
class Target:
    """What `--target` names.

    Attributes:
        name: such as "gguf-q4" or "onnx-int4".
        format: "gguf" or "onnx".
        types: the types to choose from by measured quality per byte; one for an exact target.
    """

    name: str
    format: str
    types: tuple[str, ...]

    @property
    def exact(self) -> bool:
        """Whether there is nothing to choose."""
        return len(self.types) == 1

    @property
    def quantized(self) -> bool:
        """Whether the weights are integers of blocks."""
        return self.types[0] not in (*UNQUANTIZED, "fp32", "fp16")


def _target(name: str, types: tuple[str, ...]) -> Target:
    return Target(f"gguf-{name}", "gguf", types)


# ONNX types. Blocks of 128 run fastest, those of 64 are closer to the checkpoint; accuracy level 4 computes
# in int8 (docs/decisions.md has what was measured).
PRECISIONS: dict[str, Precision] = {
    "fp32": Precision("fp32"),
    "fp16": Precision("fp16"),
    "int8": Precision("int8", 8, block_size=64, head_block_size=64),
    "int4": Precision("int4", 4, block_size=128, symmetric=False, head_block_size=64),
    "int4-64": Precision("int4", 4, block_size=64, symmetric=False, head_block_size=64),
}

_TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        *(_target(name, types) for name, types in _FAMILIES.items()),
        *(Target(f"onnx-{name}", "onnx", (name,)) for name in PRECISIONS),
        *(_target(name, (name,)) for name in QUANTIZATIONS),
    )
}


def list_targets() -> list[Target]:
    """All targets, families first."""
    return list(_TARGETS.values())


def parse_target(name: str) -> Target:
    """The target of that name, in any case; UsageError with the known names if there is none."""
    target = _TARGETS.get(name.lower())
    if target is None:
        raise UsageError(f"unknown target {name!r}", f"known targets: {', '.join(_TARGETS)}")
    return target


def candidates(target: Target, decoder: Decoder, *, imatrix: bool = True) -> list[str]:
    """The types of a target that are worth trying on a model.

    Dropped are, in this order: types that need an importance matrix where there is none; types that give
    every tensor the type that an earlier one gives it; and types of which most of the blocks' weights would
    fall back to others. If all would, the one with the smallest file is left, so a family never comes out
    empty.

    Args:
        imatrix: whether there will be an importance matrix.
    """
    from minigpt_edge_export.quantize import expected_bytes, expected_types

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

    from minigpt_edge_export.gguf_layout import tensor_shapes

    own = total = 0
    for tensor, shape in tensor_shapes(decoder).items():
        if tensor.startswith("blk.") and len(shape) > 1:
            block_size, _ = GGML_QUANT_SIZES[GGMLQuantizationType[plan[tensor]]]
            total += math.prod(shape)
            own += math.prod(shape) if block_size >= QUANTIZATIONS[name].multiple else 0
    return own / total
