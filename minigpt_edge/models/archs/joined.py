"""Architectures whose checkpoints hold query, key and value in one matrix: in memory they are three."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch  # noqa: TID253 - only load_arch imports this file
from torch import Tensor, nn  # noqa: TID253

from minigpt_edge.models.archs import base
from minigpt_edge.models.archs.base import Position, attend

_PARTS = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "attention_output": "o_proj"}
_THREE = tuple(_PARTS)[:3]


class SplitAttention(nn.Module):
    """Attention with a matrix each for query, key and value, in place of transformers' own module."""

    def __init__(self, hidden: int, head_dim: int, bias: bool) -> None:
        super().__init__()
        self.head_dim = head_dim
        for name in _PARTS.values():
            self.add_module(name, nn.Linear(hidden, hidden, bias=bias))

    def forward(
        self,
        hidden_states: Tensor,
        *_: Any,
        position_embeddings: Position = (),
        attention_mask: Tensor | None = None,
        **__: Any,
    ) -> tuple[Tensor, None]:
        """What transformers' module returns; without masks or caches."""
        if attention_mask is not None:
            raise ValueError("no masks: pad on the right, where causal attention does not look")
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        q, k, v = (self.get_submodule(_PARTS[part])(hidden_states).view(shape) for part in _THREE)
        mixed: Tensor = self.get_submodule(_PARTS["attention_output"])(attend(q, k, v, position_embeddings))
        return mixed, None


class Arch(base.Arch):
    """Splits the matrix when a checkpoint is read and joins it again when one is written.

    Attributes:
        renamed: part -> its module's name in memory, where checkpoints have another.
    """

    renamed: Mapping[str, str] = {}

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        self._stored_parts = {name: part for part, name in self.names.items()}
        self.names |= {part: f"{self.attention}.{name}" for part, name in _PARTS.items()}
        self.names |= self.renamed
        self._parts = {name: part for part, name in self.names.items()}
        self._name = re.compile(rf"((?:{re.escape(self.blocks_path)}\.\d+\.)?)(.+)\.(weight|bias)")

    def build(self, config: dict[str, Any]) -> nn.Module:
        hidden, heads = config["hidden_size"], config["hidden_size"] // config["head_dim"]
        named = {**config, "num_attention_heads": heads}
        named |= {own: named[key] for key, own in self.architecture.keys.items() if key in named}
        model = super().build(named)
        shapes = {"up": (hidden, config["intermediate_size"]), "down": (config["intermediate_size"], hidden)}
        for block in self.blocks(model):
            attention = SplitAttention(hidden, config["head_dim"], "query" in self.style.biased)
            block.set_submodule(self.attention, attention)
            if self.architecture.transposed:  # transformers' Conv1D is a Linear with its weight transposed
                for part, shape in shapes.items():
                    block.set_submodule(self.names[part], nn.Linear(*shape))
        return model

    def from_stored(self, weights: dict[str, Tensor], head_dim: int) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name, tensor in weights.items():
            prefix, module, kind = self._split(name)
            if prefix and self.architecture.transposed and tensor.dim() > 1:
                tensor = tensor.t()
            part = self._stored_parts.get(module, "")
            if part == "joined":
                for third, rows in zip(_THREE, self._thirds(tensor, head_dim), strict=True):
                    found[f"{prefix}{self.names[third]}.{kind}"] = rows
            else:
                found[f"{prefix}{self.names.get(part, module)}.{kind}"] = tensor
        return {name: tensor.contiguous() for name, tensor in found.items()}

    def to_stored(self, weights: dict[str, Tensor], head_dim: int) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        names = self.architecture.names
        for name, tensor in weights.items():
            prefix, module, kind = self._split(name)
            part = self._parts.get(module, "")
            if part in _THREE[1:]:
                continue
            if part == "query":
                part = "joined"
                thirds = [weights[f"{prefix}{self.names[third]}.{kind}"] for third in _THREE]
                tensor = self._joined(thirds, head_dim)
            if prefix and self.architecture.transposed and tensor.dim() > 1:
                tensor = tensor.t()
            found[f"{prefix}{names.get(part, module)}.{kind}"] = tensor.contiguous()
        return found

    def _split(self, name: str) -> tuple[str, str, str]:
        """The prefix of its block ("" for what is in none), its module's name there, "weight" or "bias"."""
        place = self._name.fullmatch(name)
        if place is None:
            raise ValueError(f"{name} is neither a weight nor a bias")
        prefix, module, kind = place.groups()
        return prefix, module, kind

    def _thirds(self, tensor: Tensor, head_dim: int) -> Iterator[Tensor]:
        if self.architecture.joined == "parts":
            yield from tensor.chunk(3)
            return
        heads = tensor.view(-1, 3, head_dim, *tensor.shape[1:])
        for index in range(3):
            yield heads[:, index].reshape(-1, *tensor.shape[1:])

    def _joined(self, thirds: list[Tensor], head_dim: int) -> Tensor:
        if self.architecture.joined == "parts":
            return torch.cat(thirds)
        heads = [third.view(-1, 1, head_dim, *third.shape[1:]) for third in thirds]
        return torch.cat(heads, 1).reshape(-1, *thirds[0].shape[1:])
