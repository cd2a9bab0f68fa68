"""GPT-NeoX (Pythia): attention and MLP side by side on norms of their own, partly rotated heads."""

from __future__ import annotations

from minigpt_edge_export.architectures.base import ATTENTION, Architecture, Config, GgufLayout, Style


def _style(config: Config) -> Style:
    attention = ATTENTION if config.get("attention_bias", True) else ()
    parallel = bool(config.get("use_parallel_residual", True))
    return Style(norm="layer", gated=False, parallel=parallel, biased=frozenset((*attention, "up", "down")))


ARCHITECTURE = Architecture(
    names={
        "embedding": "gpt_neox.embed_in",
        "norm": "gpt_neox.final_layer_norm",
        "head": "embed_out",
        "block": "gpt_neox.layers.{index}.",
        "attention_norm": "input_layernorm",
        "joined": "attention.query_key_value",
        "attention_output": "attention.dense",
        "mlp_norm": "post_attention_layernorm",
        "up": "mlp.dense_h_to_4h",
        "down": "mlp.dense_4h_to_h",
    },
    style=_style,
    gguf=(
        GgufLayout(
            "gptneox",
            blocks="padded",
            whole=True,
            joined=True,
            biased=frozenset((*ATTENTION, "up", "down")),
            own_head=True,
            parallel_key=True,
        ),
    ),
    keys={"eps": "layer_norm_eps"},
    bias_keys=("attention_bias",),
    joined="heads",
    derived_heads=True,
    rotary_share=0.25,
    activation="gelu",
)
