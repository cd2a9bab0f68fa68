"""Architectures whose checkpoints hold query, key and value in one matrix: in memory they are three."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch  # noqa: TID253 - only load_arch imports this file
from torch import Tensor, nn  # noqa: TID253

from minigpt_edge.models.archs.base import Arch, Position, attend

_THREE = ("q_proj", "k_proj", "v_proj")
_OUT = "o_proj"


class SplitAttention(nn.Module):
    """Attention with a matrix each for query, key and value, in place of transformers' own module."""

    def __init__(self, hidden: int, head_dim: int, bias: bool) -> None:
        super().__init__()
        self.head_dim = head_dim
        for name in (*_THREE, _OUT):
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
        q, k, v = (self.get_submodule(name)(hidden_states).view(shape) for name in _THREE)
        mixed: Tensor = self.get_submodule(_OUT)(attend(q, k, v, position_embeddings))
        return mixed, None


class JoinedArch(Arch):
    """Splits the matrix when a checkpoint is read and joins it again when one is written."""

    derived_heads = True

    def __init__(self) -> None:
        super().__init__()
        self.stored = dict(self.names)
        for part, name in zip(("query", "key", "value", "attention_output"), (*_THREE, _OUT), strict=True):
            self.names[part] = f"{self.attention}.{name}"
        prefix = re.escape(self.blocks_path) + r"\.\d+\."
        self._block = re.compile(rf"({prefix})(.+)\.(weight|bias)")

    def split_attention(self, model: nn.Module, hidden: int, heads: int, bias: bool) -> nn.Module:
        """Replace the attention of every block."""
        for block in self.blocks(model):
            setattr(block, self.attention, SplitAttention(hidden, hidden // heads, bias))
        return model

    def from_stored(self, weights: dict[str, Tensor], head_dim: int) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name, tensor in weights.items():
            place = self._block.fullmatch(name)
            if not place:
                found[name] = tensor
                continue
            prefix, module, kind = place.groups()
            if self.family.transposed and tensor.dim() > 1:
                tensor = tensor.t()
            if module == self.stored["joined"]:
                for part, third in zip(_THREE, self._thirds(tensor, head_dim), strict=True):
                    found[f"{prefix}{self.attention}.{part}.{kind}"] = third
            else:
                out = module == self.stored["attention_output"]
                found[f"{prefix}{self.names['attention_output'] if out else module}.{kind}"] = tensor
        return {name: tensor.contiguous() for name, tensor in found.items()}

    def _thirds(self, tensor: Tensor, head_dim: int) -> Iterator[Tensor]:
        if self.family.joined == "parts":
            yield from tensor.chunk(3)
            return
        heads = tensor.view(-1, 3, head_dim, *tensor.shape[1:])
        for index in range(3):
            yield heads[:, index].reshape(-1, *tensor.shape[1:])

    def to_stored(self, weights: dict[str, Tensor], head_dim: int) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name, tensor in weights.items():
            place = self._block.fullmatch(name)
            if not place:
                found[name] = tensor
                continue
            prefix, module, kind = place.groups()
            if module == self.names["query"]:
                module = self.stored["joined"]
                thirds = [weights[f"{prefix}{self.attention}.{part}.{kind}"] for part in _THREE]
                tensor = self._joined(thirds, head_dim)
            elif module in (self.names["key"], self.names["value"]):
                continue
            elif module == self.names["attention_output"]:
                module = self.stored["attention_output"]
            if self.family.transposed and tensor.dim() > 1:
                tensor = tensor.t()
            found[f"{prefix}{module}.{kind}"] = tensor.contiguous()
        return found

    def _joined(self, thirds: list[Tensor], head_dim: int) -> Tensor:
        if self.family.joined == "parts":
            return torch.cat(thirds)
        heads = [third.view(-1, 1, head_dim, *third.shape[1:]) for third in thirds]
        return torch.cat(heads, 1).reshape(-1, *thirds[0].shape[1:])
