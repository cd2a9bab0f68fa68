"""Qwen3: LLaMA with norms of query and key."""

from __future__ import annotations

from minigpt_edge_export.architectures.base import ATTENTION, Architecture, Config, GgufLayout, Style
from minigpt_edge_export.architectures.llama import NAMES
from minigpt_edge_export.architectures.qwen2 import check_window


def _style(config: Config) -> Style:
    check_window(config)
    return Style(head_norms=True, biased=frozenset(ATTENTION if config.get("attention_bias") else ()))


ARCHITECTURE = Architecture(
    names={**NAMES, "query_norm": "self_attn.q_norm", "key_norm": "self_attn.k_norm"},
    style=_style,
    gguf=(
        GgufLayout("qwen3", blocks="equal"),
        GgufLayout(
            "openelm", plain=True, joined=True
        ),  # openelm is llama.cpp's Qwen3 block with a size for each block.
        GgufLayout("qwen3", blocks="padded"),
    ),
    keys={"eps": "rms_norm_eps"},
)
