"""StableLM: LLaMA with LayerNorm, partly rotated heads and, in some sizes, attention and MLP side by side."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn  # noqa: TID253 - only load_arch imports this file
from transformers import StableLmConfig, StableLmForCausalLM  # noqa: TID253

from minigpt_edge.models.archs.base import Arch


class StableLm(Arch):
    model_type, config_class, model_class = "stablelm", StableLmConfig, StableLmForCausalLM
    derived_heads = True
    biasless = True

    def parallel(self, block: Any) -> bool:
        return bool(block.use_parallel_residual)

    def ffn_input(self, block: nn.Module, hidden: Tensor) -> Tensor:
        return (
            self.attention_input(block, hidden) if self.parallel(block) else super().ffn_input(block, hidden)
        )


ARCH = StableLm()
