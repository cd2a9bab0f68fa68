"""GPT-NeoX (Pythia): attention and MLP side by side on norms of their own, partly rotated heads."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn  # noqa: TID253 - only load_arch imports this file
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM  # noqa: TID253

from minigpt_edge.models.archs.joined import JoinedArch


class GPTNeoX(JoinedArch):
    model_type, config_class, model_class = "gpt_neox", GPTNeoXConfig, GPTNeoXForCausalLM
    attention, rotary = "attention", "gpt_neox.rotary_emb"
    bias_keys = ("attention_bias",)

    def __init__(self) -> None:
        super().__init__()
        self.names["head"] = "lm_head"  # transformers 5 renames it when it reads a checkpoint

    def from_stored(self, weights: dict[str, Tensor], head_dim: int) -> dict[str, Tensor]:
        return super().from_stored(self._renamed(weights, self.stored["head"], self.names["head"]), head_dim)

    def to_stored(self, weights: dict[str, Tensor], head_dim: int) -> dict[str, Tensor]:
        return super().to_stored(self._renamed(weights, self.names["head"], self.stored["head"]), head_dim)

    @staticmethod
    def _renamed(weights: dict[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
        return {new + n.removeprefix(old) if n.startswith(f"{old}.") else n: t for n, t in weights.items()}

    def build(self, config: dict[str, Any]) -> nn.Module:
        heads = config["hidden_size"] // config["head_dim"]
        model = super().build({**config, "num_attention_heads": heads})
        bias = bool(config.get("attention_bias", True))
        return self.split_attention(model, config["hidden_size"], heads, bias)

    def parallel(self, block: Any) -> bool:
        return bool(block.use_parallel_residual)

    def activation(self, block: Any) -> Any:
        return block.mlp.act


ARCH = GPTNeoX()
