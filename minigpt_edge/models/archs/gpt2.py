"""GPT-2: a table of positions, LayerNorm, GELU, biases; its checkpoints store matrices transposed."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn  # noqa: TID253 - only load_arch imports this file
from transformers import GPT2Config, GPT2LMHeadModel  # noqa: TID253

from minigpt_edge.models.archs.base import Position
from minigpt_edge.models.archs.joined import JoinedArch


class GPT2(JoinedArch):
    model_type, config_class, model_class = "gpt2", GPT2Config, GPT2LMHeadModel
    attention = "attn"

    def build(self, config: dict[str, Any]) -> nn.Module:
        hidden, width = config["hidden_size"], config["intermediate_size"]
        heads = hidden // config["head_dim"]
        own = {**config, "num_attention_heads": heads, "n_head": heads, "n_inner": width}
        model = self.split_attention(super().build(own), hidden, heads, True)
        for block in self.blocks(model):  # transformers' Conv1D is a Linear with its weight transposed
            block.mlp.c_fc, block.mlp.c_proj = nn.Linear(hidden, width), nn.Linear(width, hidden)
        return model

    def embed(self, model: Any, ids: Tensor) -> Tensor:
        table = model.get_submodule(self.names["positions"]).weight
        return model.get_input_embeddings()(ids) + table[: ids.shape[1]]

    def positions(self, model: nn.Module, hidden: Tensor) -> Position:
        return ()

    def activation(self, block: Any) -> Any:
        return block.mlp.act


ARCH = GPT2()
