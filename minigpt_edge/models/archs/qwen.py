"""Qwen2 and Qwen3: LLaMA with biases of query, key and value, or with norms of query and key."""

from __future__ import annotations

from torch import Tensor, nn  # noqa: TID253 - only load_arch imports this file
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM  # noqa: TID253

from minigpt_edge.models.archs.base import Arch, norm


class Qwen2(Arch):
    model_type, config_class, model_class = "qwen2", Qwen2Config, Qwen2ForCausalLM
    biasless = True


class Qwen3(Arch):
    model_type, config_class, model_class = "qwen3", Qwen3Config, Qwen3ForCausalLM
    biasless = True

    def normed_heads(self, block: nn.Module, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return norm(self.part(block, "query_norm"), q), norm(self.part(block, "key_norm"), k)


QWEN2, QWEN3 = Qwen2(), Qwen3()
