"""What the file of an architecture says: what its checkpoints call the parts, what its blocks compute, and
how llama.cpp wants its weights."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from minigpt_edge_runtime.errors import EdgeError

BUFFERS = re.compile(r"(^|\.)(rotary_emb\.inv_freq|(attn|attention)\.(masked_)?bias)$")  # no weights
ATTENTION = ("query", "key", "value", "attention_output")
MLP = ("gate", "up", "down")
Config = Mapping[str, Any]  # the content of a config.json
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

    @property
    def inner(self) -> tuple[str, ...]:
        """The parts whose outputs are the neurons."""
        return MLP[:2] if self.gated else MLP[1:2]

    @property
    def norm_kinds(self) -> tuple[str, ...]:
        """The weights of a norm."""
        return ("weight", "bias") if self.norm == "layer" else ("weight",)


@dataclass(frozen=True)
class GgufLayout:
    """One of llama.cpp's architectures that a decoder can be written as, and which decoders it takes.

    Its source, src/models/NAME.cpp in llama.cpp, says which tensors it loads, whether query, key and value
    are joined, which biases must be there, and whether blocks may differ in size (`n_head(i)`, `n_ff(i)`).

    Attributes:
        name: llama.cpp's, general.architecture in the file.
        blocks: "equal" takes blocks of one size. "padded" takes equal heads and one width, so narrower MLPs
            are padded with neurons of zeros, which add exactly nothing. "own" takes any sizes.
        whole: heads x head_dim must be the hidden size.
        plain: the embedding must be the head, and nothing may have a bias.
        paired: rows of query and key are stored in the pairs that are rotated together.
        joined: query, key and value are one tensor.
        biased: parts that must have a bias; one of zeros if the decoder has none.
        own_head: the head is stored even if it is the embedding.
        parallel_key: the metadata say whether the halves of a block are parallel.
        relu_scale: a decoder with ReLU is written by what its GELU becomes in the limit GELU(k x) / k, with
            this k, a power of two; 1 writes no such decoder (docs/opt-in-gguf.md).
    """

    name: str
    blocks: Literal["equal", "padded", "own"] = "own"
    whole: bool = False
    plain: bool = False
    paired: bool = False
    joined: bool = False
    biased: frozenset[str] = frozenset()
    own_head: bool = False
    parallel_key: bool = False
    relu_scale: float = 1.0


@dataclass(frozen=True)
class Architecture:
    """Checkpoints of one `model_type`.

    Attributes:
        names: part -> its module's name in a checkpoint; "block" is the prefix of all parts of one.
        style: the config's `Style`, without the activation; ValueError says what can't be exported.
        gguf: llama.cpp's architectures for it; the first one that takes a decoder is used.
        keys: what this config calls hidden_size, intermediate_size, …, where it has names of its own.
        bias_keys: settings of the config that give matrices biases.
        joined: how query, key and value are stored where they are one matrix: "parts" one after the other,
            "heads" with the three of each head together.
        transposed: matrices of the blocks are stored as [inputs, outputs].
        derived_heads: the config has no head_dim; transformers takes it from hidden size ÷ heads, so a model
            that lacks heads needs `per_layer_config` even if all blocks are alike.
        unused_positions: rows of the position table before the first one.
        rotary_share: of a head's values, where the config does not say.
        widening: neurons of the MLP ÷ hidden size, where the config may leave it open.
        tied: whether embedding and head are one where the config does not say.
        activation, eps: what they are where the config does not say; eps None must be in the config.
    """

    names: Mapping[str, str]
    style: Callable[[Config], Style]
    gguf: tuple[GgufLayout, ...]
    keys: Mapping[str, str] = field(default_factory=dict)
    bias_keys: tuple[str, ...] = ()
    joined: str = ""
    transposed: bool = False
    derived_heads: bool = False
    unused_positions: int = 0
    rotary_share: float = 1.0
    widening: int = 0
    tied: bool = False
    activation: str = "silu"
    eps: float | None = None

    def get(self, config: Config, key: str, default: Any = None) -> Any:
        """A config's value under the name that it has here."""
        value = config.get(self.keys.get(key, key))
        return default if value is None else value

    def width(self, config: Config) -> Any:
        """A config's intermediate_size, which some may leave to `widening`."""
        return self.get(
            config, "intermediate_size", self.widening and self.widening * self.get(config, "hidden_size")
        )

    def style_of(self, config: Config, where: str) -> Style:
        """The style of a config, activation included.

        Raises:
            EdgeError: it asks for something that can't be exported; the message begins with `where`.
        """
        try:
            style = self.style(config)
        except ValueError as error:
            raise EdgeError(
                f"{where}: {error} can't be exported", "use another model of the family"
            ) from error
        name = self.get(config, "hidden_act", self.activation)
        if name not in _ACTIVATIONS or (style.gated and name != "silu"):
            known = "silu" if style.gated else ", ".join(_ACTIVATIONS)
            raise EdgeError(f"{where}: the activation {name!r} can't be exported", f"only {known} is known")
        return dataclasses.replace(style, activation=_ACTIVATIONS[name])
