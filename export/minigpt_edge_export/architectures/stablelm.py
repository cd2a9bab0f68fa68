"""StableLM: LLaMA with LayerNorm, partly rotated heads and, in some sizes, attention and MLP side by side."""

from __future__ import annotations

from minigpt_edge_export.architectures.base import ATTENTION, Architecture, Config, GgufLayout, Style
from minigpt_edge_export.architectures.llama import NAMES


def _style(config: Config) -> Style:
    if config.get("qk_layernorm"):
        raise ValueError("norms of query and key (qk_layernorm)")
    parallel = bool(config.get("use_parallel_residual"))
    biased = frozenset(ATTENTION[:3] if config.get("use_qkv_bias") else ())
    return Style(norm="layer", parallel=parallel, mlp_norm=not parallel, biased=biased)


ARCHITECTURE = Architecture(
    names=NAMES,
    style=_style,
    gguf=(GgufLayout("stablelm", blocks="padded", whole=True, own_head=True),),
    keys={"eps": "layer_norm_eps"},
    derived_heads=True,
    rotary_share=0.25,
)
