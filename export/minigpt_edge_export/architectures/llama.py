"""LLaMA and its relatives: RMSNorm, rotary positions, grouped-query attention, gated MLP."""

from __future__ import annotations

from minigpt_edge_export.architectures.base import ATTENTION, MLP, Architecture, Config, GgufLayout, Style

NAMES = {
    "embedding": "model.embed_tokens",
    "norm": "model.norm",
    "head": "lm_head",
    "block": "model.layers.{index}.",
    "attention_norm": "input_layernorm",
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "attention_output": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
# DECI is llama.cpp's LLaMA block with a size for each block and optional biases.
DECI = GgufLayout("deci", paired=True)


def _style(config: Config) -> Style:
    attention = ATTENTION if config.get("attention_bias") else ()
    return Style(biased=frozenset((*attention, *(MLP if config.get("mlp_bias") else ()))))


ARCHITECTURE = Architecture(
    names=NAMES,
    style=_style,
    gguf=(GgufLayout("llama", blocks="equal", paired=True), DECI),
    keys={"eps": "rms_norm_eps"},
    bias_keys=("attention_bias", "mlp_bias"),
)
