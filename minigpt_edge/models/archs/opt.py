"""OPT: a table of positions whose first two rows are unused, LayerNorm, ReLU, biases."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn  # noqa: TID253 - only load_arch imports this file
from transformers import OPTConfig, OPTForCausalLM  # noqa: TID253

from minigpt_edge.models.archs.base import Arch, Position


class OPT(Arch):
    model_type, config_class, model_class = "opt", OPTConfig, OPTForCausalLM
    derived_heads = True
    bias_keys = ("enable_bias",)

    def embed(self, model: Any, ids: Tensor) -> Tensor:
        table, first = model.get_submodule(self.names["positions"]).weight, self.family.unused_positions
        return model.get_input_embeddings()(ids) + table[first : first + ids.shape[1]]

    def positions(self, model: nn.Module, hidden: Tensor) -> Position:
        return ()

    def activation(self, block: Any) -> Any:
        return block.activation_fn


ARCH = OPT()
