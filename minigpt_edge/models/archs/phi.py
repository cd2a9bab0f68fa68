"""Phi-1, 1.5 and 2: attention and MLP side by side on one norm, partly rotated heads, biases everywhere."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn  # noqa: TID253 - only load_arch imports this file
from transformers import PhiConfig, PhiForCausalLM  # noqa: TID253

from minigpt_edge.models.archs.base import Arch


class Phi(Arch):
    model_type, config_class, model_class = "phi", PhiConfig, PhiForCausalLM

    def parallel(self, block: nn.Module) -> bool:
        return True

    def ffn_input(self, block: nn.Module, hidden: Tensor) -> Tensor:
        return self.attention_input(block, hidden)

    def activation(self, block: Any) -> Any:
        return block.mlp.activation_fn


ARCH = Phi()
