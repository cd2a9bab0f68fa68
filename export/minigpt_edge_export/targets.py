"""What a model can be exported to: families such as gguf-q4, onnx-int4, and exact types such as gguf-iq4_nl.

Which type of a family a model gets, Q4_0 or another, is chosen by measuring: `gguf.candidates` names those
that are worth it, minigpt_edge.ship.choose_type measures them, and `gguf.mixed` mixes types within a file.

llama.cpp never refuses a width. A matrix whose rows are not a multiple of the type's block silently gets
another type: 256-blocks become Q4_0 (from Q2_K, Q3_K), Q5_0 (Q4_K), Q5_1 (Q5_K), Q8_0 (Q6_K) or IQ4_NL (IQ
types), and what does not divide by 32 either stays F16. Rows are hidden_size, each block's intermediate_size,
and heads x head_dim. `candidates` therefore asks llama.cpp which types a model would really get.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from minigpt_edge_runtime.errors import UsageError


@dataclass(frozen=True)
class Quantization:
    """One of llama.cpp's recipes.

    Attributes:
        multiple: what rows must divide by.
        needs_imatrix: whether it refuses without an importance matrix.
        others: matrices of a block that we give another type than the recipe does, such as "ffn_down".
        note: what a user should know before choosing it.
    """

    multiple: int
    needs_imatrix: bool = False
    others: Mapping[str, str] = field(default_factory=dict)
    note: str = ""


# Left out: mxfp4_moe (for experts; a dense model gets Q8_0); nvfp4, q1_0 (too few builds read them).
QUANTIZATIONS: dict[str, Quantization] = {
    **{name: Quantization(1) for name in ("f32", "f16", "bf16")},
    **{name: Quantization(32) for name in ("q8_0", "q5_0", "q5_1", "q4_0", "q4_1", "iq4_nl")},
    **{name: Quantization(256) for name in ("q6_k", "q5_k_m", "q5_k_s", "q4_k_m", "q4_k_s", "iq4_xs")},
    **{name: Quantization(256) for name in ("q3_k_l", "q3_k_m", "q3_k_s", "iq3_m", "iq3_s", "q2_k")},
    **{name: Quantization(256) for name in ("tq2_0", "tq1_0")},
    **{name: Quantization(256, True) for name in ("iq3_xs", "iq3_xxs", "q2_k_s", "iq2_m", "iq2_s", "iq2_xs")},
    **{name: Quantization(256, True) for name in ("iq2_xxs", "iq1_m", "iq1_s")},
    # Two bits for what an FFN's neurons write cost more than for all else together (docs/decisions.md 65).
    "q2_0": Quantization(
        64,
        others={"ffn_down": "iq4_nl"},
        note="two bits; llama.cpp has fast code for it on ARM and GPUs, x86 processors decode it about five "
        "times slower than gguf-iq4_nl",
    ),
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

# What recovery can train for -> the type of `gguf.grids`.
_TRAINED = {
    **{"q4": "IQ4_NL", "q5": "Q5_0", "q4_0": "Q4_0", "iq4_nl": "IQ4_NL", "q5_0": "Q5_0"},
    "q2_0": "Q2_0",
}
_ROUNDING_FAILS = frozenset({"Q2_0"})  # types that are trained unless the user says otherwise


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
    def grid(self) -> str | None:
        """The type of `gguf.grids` that recovery trains on for it; None for types that lose too little, or
        whose grid has scales of scales."""
        name = self.name.removeprefix("gguf-")
        return _TRAINED.get(name) if self.format == "gguf" else None

    @property
    def needs_training(self) -> bool:
        """Whether rounding afterwards loses so much that recovery trains on the grid by default."""
        return self.grid in _ROUNDING_FAILS

    @property
    def note(self) -> str:
        """What a user should know before choosing it; empty for most."""
        return QUANTIZATIONS[self.types[0]].note if self.format == "gguf" and self.exact else ""

    @property
    def quantized(self) -> bool:
        """Whether the weights are integers of blocks."""
        return self.types[0] not in (*UNQUANTIZED, "fp32", "fp16")


@dataclass(frozen=True)
class Precision:
    """How an ONNX target stores its weights.

    Attributes:
        name: "fp32", "fp16", "int8" or "int4"; float16 weights are widened when they are loaded, since
            processors compute in float32.
        bits: of a block's integers, 0 for floats.
        block_size: weights along the inputs that share a scale.
        symmetric: no zero points: integers stand for -8…7 (-128…127) times the scale.
        head_bits, head_block_size: the same of the embedding and head.
        accuracy_level: MatMulNBits' own: 4 computes in int8, 0 and 1 in float32.
    """

    name: str
    bits: int = 0
    block_size: int = 32
    symmetric: bool = True
    head_bits: int = 8
    head_block_size: int = 32
    accuracy_level: int = 4


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
        *(Target(f"gguf-{name}", "gguf", types) for name, types in _FAMILIES.items()),
        *(Target(f"onnx-{name}", "onnx", (name,)) for name in PRECISIONS),
        *(Target(f"gguf-{name}", "gguf", (name,)) for name in QUANTIZATIONS),
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
