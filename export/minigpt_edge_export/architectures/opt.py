"""OPT: a table of positions whose first two rows are unused, LayerNorm, ReLU, biases.

llama.cpp has no architecture for it: it is written as GPT-2, whose GELU becomes ReLU in the limit.
"""

from __future__ import annotations

from minigpt_edge_export.architectures.base import ATTENTION, Architecture, Config, Style
from minigpt_edge_export.architectures.gpt2 import GGUF


def _style(config: Config) -> Style:
    if config.get("do_layer_norm_before") is False:
        raise ValueError("norms after attention and MLP (OPT-350m)")
    if config.get("word_embed_proj_dim") not in (None, config.get("hidden_size")):
        raise ValueError("embeddings of another width than the blocks (OPT-350m)")
    if config.get("layer_norm_elementwise_affine") is False or config.get("_remove_final_layer_norm"):
        raise ValueError("norms without weights, or none at the end")
    biased = frozenset((*ATTENTION, "up", "down") if config.get("enable_bias", True) else ())
    return Style(norm="layer", gated=False, learned_positions=True, biased=biased)


ARCHITECTURE = Architecture(
    names={
        "embedding": "model.decoder.embed_tokens",
        "positions": "model.decoder.embed_positions",
        "norm": "model.decoder.final_layer_norm",
        "head": "lm_head",
        "block": "model.decoder.layers.{index}.",
        "attention_norm": "self_attn_layer_norm",
        "query": "self_attn.q_proj",
        "key": "self_attn.k_proj",
        "value": "self_attn.v_proj",
        "attention_output": "self_attn.out_proj",
        "mlp_norm": "final_layer_norm",
        "up": "fc1",
        "down": "fc2",
    },
    style=_style,
    gguf=(GGUF,),
    keys={"intermediate_size": "ffn_dim", "eps": "eps", "hidden_act": "activation_function"},
    bias_keys=("enable_bias",),
    derived_heads=True,
    unused_positions=2,
    tied=True,
    activation="relu",
    eps=1e-5,  # transformers builds its norms without a setting
)
