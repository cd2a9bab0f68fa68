"""Families of models: what their checkpoints call the parts of a decoder, and what their configs mean."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from minigpt_edge_runtime.errors import EdgeError

BUFFERS = re.compile(r"(^|\.)(rotary_emb\.inv_freq|(attn|attention)\.(masked_)?bias)$")  # no weights
ATTENTION = ("query", "key", "value", "attention_output")
MLP = ("gate", "up", "down")
_ACTIVATIONS = {
    "silu": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


@dataclass(frozen=True)
class Style:
    """What a block computes, besides its sizes.

    Attributes:
        activation: "silu", "gelu" (by the error function), "gelu_tanh" or "relu".
        norm: "rms", or "layer", which has biases.
        gated: the MLP multiplies its activated gate with `up`; otherwise it activates `up`.
        parallel: the MLP reads what attention reads, not what attention made of it.
        mlp_norm: the MLP has a norm of its own.
        head_norms: query and key of each head go through an RMS norm.
        learned_positions: a table added to the embedding, in place of rotary positions.
        biased: parts with a bias, norms apart.
    """

    activation: str = "silu"
    norm: str = "rms"
    gated: bool = True
    parallel: bool = False
    mlp_norm: bool = True
    head_norms: bool = False
    learned_positions: bool = False
    biased: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Family:
    """Checkpoints of one `model_type`.

    Attributes:
        names: part -> its module's name in a checkpoint; "block" is the prefix of all parts of one.
        style: the config's `Style`, without the activation; ValueError says what can't be exported.
        keys: what this config calls hidden_size, intermediate_size, …, where it has names of its own.
        joined: how query, key and value are stored where they are one matrix: "parts" one after the other,
            "heads" with the three of each head together.
        transposed: matrices of the blocks are stored as [inputs, outputs].
        unused_positions: rows of the position table before the first one.
        rotary_share: of a head's values, where the config does not say.
        widening: neurons of the MLP ÷ hidden size, where the config may leave it open.
        tied: whether embedding and head are one where the config does not say.
    """

    names: Mapping[str, str]
    style: Callable[[Mapping[str, Any]], Style]
    keys: Mapping[str, str] = field(default_factory=dict)
    joined: str = ""
    transposed: bool = False
    unused_positions: int = 0
    rotary_share: float = 1.0
    widening: int = 0
    tied: bool = False

    def get(self, config: Mapping[str, Any], key: str, default: Any = None) -> Any:
        """A config's value under the name that it has here."""
        value = config.get(self.keys.get(key, key))
        return default if value is None else value


def _llama(config: Mapping[str, Any]) -> Style:
    attention = ATTENTION if config.get("attention_bias") else ()
    return Style(biased=frozenset((*attention, *(MLP if config.get("mlp_bias") else ()))))


def _qwen2(config: Mapping[str, Any]) -> Style:
    _no_sliding_window(config)
    return Style(biased=frozenset(ATTENTION[:3]))


def _qwen3(config: Mapping[str, Any]) -> Style:
    _no_sliding_window(config)
    return Style(head_norms=True, biased=frozenset(ATTENTION if config.get("attention_bias") else ()))


def _no_sliding_window(config: Mapping[str, Any]) -> None:
    if config.get("use_sliding_window"):
        raise ValueError("attention with a sliding window")


def _phi(config: Mapping[str, Any]) -> Style:
    if config.get("qk_layernorm"):
        raise ValueError("norms of query and key (qk_layernorm)")
    biased = frozenset((*ATTENTION, "up", "down", "head"))
    return Style(norm="layer", gated=False, parallel=True, mlp_norm=False, biased=biased)


def _gpt_neox(config: Mapping[str, Any]) -> Style:
    attention = ATTENTION if config.get("attention_bias", True) else ()
    parallel = bool(config.get("use_parallel_residual", True))
    return Style(norm="layer", gated=False, parallel=parallel, biased=frozenset((*attention, "up", "down")))


def _gpt2(config: Mapping[str, Any]) -> Style:
    if config.get("scale_attn_by_inverse_layer_idx") or config.get("scale_attn_weights") is False:
        raise ValueError("attention that is scaled by block")
    biased = frozenset((*ATTENTION, "up", "down"))
    return Style(norm="layer", gated=False, learned_positions=True, biased=biased)


def _opt(config: Mapping[str, Any]) -> Style:
    if config.get("do_layer_norm_before") is False:
        raise ValueError("norms after attention and MLP (OPT-350m)")
    if config.get("word_embed_proj_dim") not in (None, config.get("hidden_size")):
        raise ValueError("embeddings of another width than the blocks (OPT-350m)")
    if config.get("layer_norm_elementwise_affine") is False or config.get("_remove_final_layer_norm"):
        raise ValueError("norms without weights, or none at the end")
    biased = frozenset((*ATTENTION, "up", "down") if config.get("enable_bias", True) else ())
    return Style(norm="layer", gated=False, learned_positions=True, biased=biased)


def _stablelm(config: Mapping[str, Any]) -> Style:
    if config.get("qk_layernorm"):
        raise ValueError("norms of query and key (qk_layernorm)")
    parallel = bool(config.get("use_parallel_residual"))
    biased = frozenset(ATTENTION[:3] if config.get("use_qkv_bias") else ())
    return Style(norm="layer", parallel=parallel, mlp_norm=not parallel, biased=biased)


_LLAMA_NAMES = {
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
FAMILIES: dict[str, Family] = {
    "llama": Family(_LLAMA_NAMES, _llama, {"eps": "rms_norm_eps"}),
    "qwen2": Family(_LLAMA_NAMES, _qwen2, {"eps": "rms_norm_eps"}),
    "qwen3": Family(
        {**_LLAMA_NAMES, "query_norm": "self_attn.q_norm", "key_norm": "self_attn.k_norm"},
        _qwen3,
        {"eps": "rms_norm_eps"},
    ),
    "phi": Family(
        {
            **{part: name for part, name in _LLAMA_NAMES.items() if part != "gate"},
            "norm": "model.final_layernorm",
            "attention_output": "self_attn.dense",
            "up": "mlp.fc1",
            "down": "mlp.fc2",
        },
        _phi,
        {"eps": "layer_norm_eps"},
        rotary_share=0.5,
    ),
    "gpt_neox": Family(
        {
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
        _gpt_neox,
        {"eps": "layer_norm_eps"},
        joined="heads",
        rotary_share=0.25,
    ),
    "gpt2": Family(
        {
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
        _gpt2,
        {
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
        widening=4,
        tied=True,
    ),
    "opt": Family(
        {
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
        _opt,
        {"intermediate_size": "ffn_dim", "eps": "eps", "hidden_act": "activation_function"},
        unused_positions=2,
        tied=True,
    ),
    "stablelm": Family(_LLAMA_NAMES, _stablelm, {"eps": "layer_norm_eps"}, rotary_share=0.25),
}
_EPS = {"opt": 1e-5}  # transformers builds OPT's norms without a setting
_ACTIVATION = {"opt": "relu", "gpt2": "gelu_new", "phi": "gelu_new", "gpt_neox": "gelu"}


def eps_of(model_type: str, config: Mapping[str, Any]) -> float | None:
    """What norms add to the mean square; None where the config lacks it."""
    value = FAMILIES[model_type].get(config, "eps", _EPS.get(model_type))
    return None if value is None else float(value)


def style_of(model_type: str, config: Mapping[str, Any], where: str) -> Style:
    """The style of a family's config.

    Raises:
        EdgeError: it asks for something that can't be exported; the message begins with `where`.
    """
    import dataclasses

    family = FAMILIES[model_type]
    try:
        style = family.style(config)
    except ValueError as error:
        raise EdgeError(f"{where}: {error} can't be exported", "use another model of the family") from error
    name = family.get(config, "hidden_act", _ACTIVATION.get(model_type, "silu"))
    if name not in _ACTIVATIONS or (style.gated and name != "silu"):
        known = "silu" if style.gated else ", ".join(_ACTIVATIONS)
        raise EdgeError(f"{where}: the activation {name!r} can't be exported", f"only {known} is known")
    return dataclasses.replace(style, activation=_ACTIVATIONS[name])
