"""Phi-1, 1.5 and 2: attention and MLP side by side on one norm, partly rotated heads, biases everywhere."""

from __future__ import annotations

from minigpt_edge_export.architectures.base import ATTENTION, Architecture, Config, GgufLayout, Style
from minigpt_edge_export.architectures.llama import NAMES

_BIASED = frozenset((*ATTENTION, "up", "down", "head"))


def _style(config: Config) -> Style:
    if config.get("qk_layernorm"):
        raise ValueError("norms of query and key (qk_layernorm)")
    return Style(norm="layer", gated=False, parallel=True, mlp_norm=False, biased=_BIASED)


ARCHITECTURE = Architecture(
    names={
        **{part: name for part, name in NAMES.items() if part != "gate"},
        "norm": "model.final_layernorm",
        "attention_output": "self_attn.dense",
        "up": "mlp.fc1",
        "down": "mlp.fc2",
    },
    style=_style,
    gguf=(GgufLayout("phi2", blocks="padded", whole=True, biased=_BIASED, own_head=True),),
    keys={"eps": "layer_norm_eps"},
    rotary_share=0.5,
    activation="gelu_new",
)
