"""Qwen2: LLaMA with biases of query, key and value."""

from __future__ import annotations

from minigpt_edge_export.architectures.base import ATTENTION, Architecture, Config, GgufLayout, Style
from minigpt_edge_export.architectures.llama import DECI, NAMES


def _style(config: Config) -> Style:
    check_window(config)
    return Style(biased=frozenset(ATTENTION[:3]))


def check_window(config: Config) -> None:
    """Raise ValueError if attention looks at the last tokens alone."""
    if config.get("use_sliding_window") or "sliding_attention" in (config.get("layer_types") or ()):
        raise ValueError("attention with a sliding window")


ARCHITECTURE = Architecture(
    names=NAMES,
    style=_style,
    gguf=(GgufLayout("qwen2", blocks="equal", whole=True), DECI),
    keys={"eps": "rms_norm_eps"},
)
