"""GPT-2: a table of positions, LayerNorm, GELU, biases; its checkpoints store matrices transposed."""

from __future__ import annotations

from minigpt_edge_export.architectures.base import ATTENTION, Architecture, Config, GgufLayout, Style

_BIASED = frozenset((*ATTENTION, "up", "down"))
GGUF = GgufLayout("gpt2", blocks="padded", whole=True, joined=True, biased=_BIASED, relu_scale=64.0)


def _style(config: Config) -> Style:
    if config.get("scale_attn_by_inverse_layer_idx") or config.get("scale_attn_weights") is False:
        raise ValueError("attention that is scaled by block")
    return Style(norm="layer", gated=False, learned_positions=True, biased=_BIASED)


ARCHITECTURE = Architecture(
    names={
        "embedding": "transformer.wte",
        "positions": "transformer.wpe",
        "norm": "transformer.ln_f",
        "head": "lm_head",
        "block": "transformer.h.{index}.",
        "attention_norm": "ln_1",
        "joined": "attn.c_attn",
        "attention_output": "attn.c_proj",
        "mlp_norm": "ln_2",
        "up": "mlp.c_fc",
        "down": "mlp.c_proj",
    },
    style=_style,
    gguf=(GGUF,),
    keys={
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "intermediate_size": "n_inner",
        "max_position_embeddings": "n_positions",
        "eps": "layer_norm_epsilon",
        "hidden_act": "activation_function",
    },
    joined="parts",
    transposed=True,
    derived_heads=True,
    widening=4,
    tied=True,
    activation="gelu_new",
)
