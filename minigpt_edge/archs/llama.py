"""LLaMA and its relatives: RMSNorm, rotary positions, grouped-query attention, gated MLP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch  # noqa: TID253 - only load_arch imports this file
from torch import Tensor, nn  # noqa: TID253
from torch.nn import functional  # noqa: TID253
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: TID253
from transformers.initialization import no_init_weights  # noqa: TID253
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb  # noqa: TID253

from minigpt_edge.attention import causal_attention

# GGUF names of the matrices that read the same input, for the importance matrix
ATTENTION_READERS = ("attn_q", "attn_k", "attn_v")
FFN_READERS = ("ffn_gate", "ffn_up")
ATTENTION_OUT = "attn_output"
FFN_OUT = "ffn_down"


def build(config: dict[str, Any]) -> nn.Module:
    """An uninitialised float32 model of a config without `per_layer_config`."""
    with no_init_weights():
        return LlamaForCausalLM(LlamaConfig(**config))


def blocks(model: nn.Module) -> list[nn.Module]:
    """The transformer blocks, first to last."""
    return list(model.model.layers)  # type: ignore[union-attr, arg-type]


def embed(model: Any, ids: Tensor) -> Tensor:
    """Token ids [batch, s] -> hidden states [batch, s, hidden]."""
    return model.model.embed_tokens(ids)


def final_norm(model: Any, hidden: Tensor) -> Tensor:
    """What the head reads: hidden states after the last norm."""
    return model.model.norm(hidden)


def positions(model: Any, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Rotary cos and sin [1, s, head_dim] for hidden states [batch, s, hidden]."""
    ids = torch.arange(hidden.shape[1])[None]
    return model.model.rotary_emb(hidden, ids)


def _norm(norm: Any, hidden: Tensor) -> Tensor:
    # one fused pass where the module makes six
    return functional.rms_norm(hidden, hidden.shape[-1:], norm.weight, norm.variance_epsilon)


def attention_input(block: Any, hidden: Tensor) -> Tensor:
    """The normalised input of q, k and v [batch, s, hidden]."""
    return _norm(block.input_layernorm, hidden)


def mix(block: Any, normalised: Tensor, position: tuple[Tensor, Tensor]) -> Tensor:
    """Causal attention's mixed values [batch, s, heads * head_dim] from `attention_input`."""
    attention = block.self_attn
    batch, length, _ = normalised.shape
    q, k, v = (
        projection(normalised).view(batch, length, -1, attention.head_dim).transpose(1, 2)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    q, k = apply_rotary_pos_emb(q, k, *position)
    mixed, _ = causal_attention(q, k, v, attention.scaling)
    return mixed.transpose(1, 2).reshape(batch, length, -1)


def ffn_input(block: Any, hidden: Tensor) -> Tensor:
    """The normalised input of the MLP [batch, s, hidden]."""
    return _norm(block.post_attention_layernorm, hidden)


def neurons(block: Any, normalised: Tensor) -> Tensor:
    """The FFN neurons' activations [batch, s, width] from `ffn_input`."""
    mlp = block.mlp
    return mlp.act_fn(mlp.gate_proj(normalised)) * mlp.up_proj(normalised)


def attention_out(block: Any) -> nn.Linear:
    """The matrix that reads the mixed values."""
    return block.self_attn.o_proj


def ffn_out(block: Any) -> nn.Linear:
    """The matrix that reads the neurons."""
    return block.mlp.down_proj


def group_size(block: Any) -> int:
    """Mixed values of one KV group: query heads that share a key/value head, times head_dim."""
    return block.self_attn.num_key_value_groups * block.self_attn.head_dim


def kv_groups(block: Any) -> int:
    """The number of KV groups of a block."""
    return block.self_attn.k_proj.out_features // block.self_attn.head_dim


def _slice(linear: nn.Linear, rows: Tensor | None = None, columns: Tensor | None = None) -> None:
    weight = linear.weight.data
    if rows is not None:
        weight = weight[rows]
        if linear.bias is not None:
            linear.bias = nn.Parameter(
                linear.bias.data[rows].clone(), requires_grad=linear.bias.requires_grad
            )
    if columns is not None:
        weight = weight[:, columns]
    linear.weight = nn.Parameter(weight.contiguous(), requires_grad=linear.weight.requires_grad)
    linear.out_features, linear.in_features = linear.weight.shape


def cut(block: Any, *, groups: Tensor | None = None, kept_neurons: Tensor | None = None) -> None:
    """Slice a block's tensors in place to the kept KV groups and FFN neurons (ascending indices).

    Columns of the matrices that read them go too, with their present values: refit before or after.
    """
    if groups is not None:
        attention = block.self_attn
        dim, repeats = attention.head_dim, attention.num_key_value_groups
        keys = (groups[:, None] * dim + torch.arange(dim)).flatten()
        mixed = (groups[:, None] * dim * repeats + torch.arange(dim * repeats)).flatten()
        _slice(attention.q_proj, mixed)
        _slice(attention.k_proj, keys)
        _slice(attention.v_proj, keys)
        _slice(attention.o_proj, columns=mixed)
    if kept_neurons is not None:
        mlp = block.mlp
        _slice(mlp.gate_proj, kept_neurons)
        _slice(mlp.up_proj, kept_neurons)
        _slice(mlp.down_proj, columns=kept_neurons)


def sizes(block: Any) -> dict[str, int]:
    """The block's entry in `per_layer_config`."""
    attention = block.self_attn
    return {
        "intermediate_size": block.mlp.down_proj.in_features,
        "num_attention_heads": attention.q_proj.out_features // attention.head_dim,
        "num_key_value_heads": attention.k_proj.out_features // attention.head_dim,
    }


def resize(block: Any, entry: dict[str, int]) -> None:
    """Give an uninitialised block the sizes of its `per_layer_config` entry."""
    heads, groups = entry["num_attention_heads"], entry["num_key_value_heads"]
    cut(block, groups=torch.arange(groups), kept_neurons=torch.arange(entry["intermediate_size"]))
    if heads != groups * block.self_attn.num_key_value_groups:
        raise ValueError(f"{heads} heads do not share {groups} key/value heads evenly")


def block_parameters(config: dict[str, Any]) -> tuple[int, int, int]:
    """Parameters of (one FFN neuron, one KV group, a block's norms) under a config."""
    hidden, dim = config["hidden_size"], config["head_dim"]
    repeats = config["num_attention_heads"] // config["num_key_value_heads"]
    neuron = 3 * hidden + (2 if config.get("mlp_bias") else 0)
    bias = (repeats + 2) * dim if config.get("attention_bias") else 0
    return neuron, (2 * repeats + 2) * dim * hidden + bias, 2 * hidden


def writers(block: Any) -> tuple[list[nn.Linear], list[nn.Linear]]:
    """The matrices whose rows make the KV groups' values, and those whose rows make the neurons'.

    Each matrix has equally many rows per unit, in the order of the units.
    """
    attention, mlp = block.self_attn, block.mlp
    return [attention.q_proj, attention.k_proj, attention.v_proj], [mlp.gate_proj, mlp.up_proj]


def keep_blocks(model: Any, kept: Sequence[int]) -> None:
    """Remove all blocks but `kept` (ascending indices) in place."""
    layers = model.model.layers
    model.model.layers = nn.ModuleList(layers[index] for index in kept)
    model.config.num_hidden_layers = len(kept)
    for index, block in enumerate(model.model.layers):
        block.self_attn.layer_idx = index  # its place in a KV cache


def give_output_biases(model: Any) -> None:
    """Zero biases in place, so that the matrices that read units can carry one.

    transformers and llama.cpp know biases of all matrices of the attention, or of the MLP, or none.
    """
    model.config.attention_bias = model.config.mlp_bias = True
    for block in blocks(model):
        attention, mlp = writers(block)
        for linear in (*attention, attention_out(block), *mlp, ffn_out(block)):
            if linear.bias is None:
                linear.bias = nn.Parameter(torch.zeros(linear.out_features))
