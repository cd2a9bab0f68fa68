"""What all architectures share: where a block's parts are, by their names, and how its halves compute."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch  # noqa: TID253 - only load_arch imports this file
from torch import Tensor, nn  # noqa: TID253
from torch.nn import functional  # noqa: TID253
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING  # noqa: TID253
from transformers.activations import ACT2FN  # noqa: TID253
from transformers.initialization import no_init_weights  # noqa: TID253
from transformers.models.gpt_neox.modeling_gpt_neox import apply_rotary_pos_emb  # noqa: TID253

from minigpt_edge.models.attention import causal_attention
from minigpt_edge.models.precision import without_autocast
from minigpt_edge_export.architectures import architecture_of
from minigpt_edge_export.architectures.base import ATTENTION
from minigpt_edge_export.decoder import Block, block_shapes
from minigpt_edge_runtime.errors import EdgeError

Position = tuple[Tensor, ...]  # rotary cos and sin [1, s, rotated values]; nothing where a table is added


class Arch:
    """What the file in `minigpt_edge_export.architectures` says of a model, computed.

    Attributes:
        architecture: that file's content.
        style: what the config means.
        parallel: whether the MLP reads what attention reads, not what attention made of it.
        names: part -> path of its module in memory, within a block or the model.
        blocks_path: path of the blocks in the model.
        attention: path of a block's attention module.
        activation: the MLP's activation function.
        biasless: no setting gives all matrices of a block biases.
    """

    # Names of a block's matrices: those that read its input, and those that read what these make.
    ATTENTION_READERS, ATTENTION_OUT, FFN_OUT = ATTENTION[:3], ATTENTION[3], "down"

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.model_type = str(config["model_type"])
        self.architecture = architecture_of(self.model_type)
        self.style = self.architecture.style_of(config, "config.json")
        self.parallel, self.FFN_READERS = self.style.parallel, self.style.inner
        self.names = dict(self.architecture.names)
        self.blocks_path = self.names["block"].partition(".{")[0]
        self.attention = self.names["attention_output"].rpartition(".")[0]
        self.activation = ACT2FN[self.architecture.get(config, "hidden_act", self.architecture.activation)]
        with_biases = {**config, **dict.fromkeys(self.architecture.bias_keys, True)}
        matrices = {*ATTENTION, *self.style.inner, "down"}
        self.biasless = not matrices <= self.architecture.style(with_biases).biased

    def build(self, config: dict[str, Any]) -> nn.Module:
        """An uninitialised float32 model of a config without `per_layer_config`."""
        with no_init_weights():
            made = CONFIG_MAPPING[self.model_type](**config)
            return MODEL_FOR_CAUSAL_LM_MAPPING[type(made)](made)  # type: ignore[operator]

    def from_stored(self, weights: dict[str, Tensor], head_dim: int) -> dict[str, Tensor]:
        """A checkpoint's weights under the names and in the form that the model in memory has them."""
        return weights

    def to_stored(self, weights: dict[str, Tensor], head_dim: int) -> dict[str, Tensor]:
        """The reverse of `from_stored`."""
        return weights

    def blocks(self, model: nn.Module) -> list[Any]:
        """The transformer blocks, first to last."""
        return list(model.get_submodule(self.blocks_path))  # type: ignore[call-overload]

    def part(self, block: nn.Module, name: str) -> Any:
        """A block's module by the part's name in the architecture's file."""
        return block.get_submodule(self.names[name])

    def embed(self, model: Any, ids: Tensor) -> Tensor:
        """Token ids [batch, s] -> hidden states [batch, s, hidden] that enter the first block."""
        embedded: Tensor = model.get_input_embeddings()(ids)
        if not self.style.learned_positions:
            return embedded
        first = self.architecture.unused_positions
        return embedded + model.get_submodule(self.names["positions"]).weight[first : first + ids.shape[1]]

    def final_norm(self, model: nn.Module, hidden: Tensor) -> Tensor:
        """What the head reads: hidden states after the last norm."""
        return norm(model.get_submodule(self.names["norm"]), hidden)

    def positions(self, model: nn.Module, hidden: Tensor) -> Position:
        """Rotary cos and sin [1, s, rotated values] for hidden states [batch, s, hidden], if any."""
        if self.style.learned_positions:
            return ()
        rotary = model.get_submodule(f"{self.blocks_path.rpartition('.')[0]}.rotary_emb")
        return rotary(hidden, torch.arange(hidden.shape[1])[None])  # type: ignore[no-any-return]

    def attention_input(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """The normalised input of q, k and v [batch, s, hidden]."""
        return norm(self.part(block, "attention_norm"), hidden)

    def mix(self, block: nn.Module, normalised: Tensor, position: Position) -> Tensor:
        """Causal attention's mixed values [batch, s, heads * head_dim] from `attention_input`."""
        batch, length, _ = normalised.shape
        dim = self.head_dim(block)
        q, k, v = (
            self.part(block, name)(normalised).view(batch, length, -1, dim) for name in self.ATTENTION_READERS
        )
        if self.style.head_norms:
            q, k = norm(self.part(block, "query_norm"), q), norm(self.part(block, "key_norm"), k)
        return attend(q, k, v, position)

    def ffn_input(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """The normalised input of the MLP [batch, s, hidden]."""
        return norm(self.part(block, "mlp_norm" if self.style.mlp_norm else "attention_norm"), hidden)

    def neurons(self, block: Any, normalised: Tensor) -> Tensor:
        """The FFN neurons' activations [batch, s, width] from `ffn_input`."""
        up: Tensor = self.part(block, "up")(normalised)
        if not self.style.gated:
            return self.activation(up)
        return self.activation(self.part(block, "gate")(normalised)) * up

    def forward(self, block: Any, hidden: Tensor, position: Position) -> Tensor:
        """Hidden states [batch, s, hidden] after a block; products in the dtype of its matrices."""
        dtype = self.attention_out(block).weight.dtype
        mixed = self.mix(block, self.attention_input(block, hidden).to(dtype), position)
        attended = hidden + self.attention_out(block)(mixed)
        read = hidden if self.parallel else attended
        active = self.neurons(block, self.ffn_input(block, read).to(dtype))
        return attended + self.ffn_out(block)(active)  # type: ignore[no-any-return]

    def attention_out(self, block: nn.Module) -> nn.Linear:
        """The matrix that reads the mixed values."""
        return self.part(block, "attention_output")  # type: ignore[no-any-return]

    def ffn_out(self, block: nn.Module) -> nn.Linear:
        """The matrix that reads the neurons."""
        return self.part(block, "down")  # type: ignore[no-any-return]

    def head_dim(self, block: nn.Module) -> int:
        """Values of one head."""
        return int(block.get_submodule(self.attention).head_dim)  # type: ignore[arg-type]

    def repeats(self, block: nn.Module) -> int:
        """Query heads that share a key/value head."""
        return int(getattr(block.get_submodule(self.attention), "num_key_value_groups", 1))

    def group_size(self, block: nn.Module) -> int:
        """Mixed values of one KV group: query heads that share a key/value head, times head_dim."""
        return self.repeats(block) * self.head_dim(block)

    def kv_groups(self, block: nn.Module) -> int:
        """The number of KV groups of a block."""
        return int(self.part(block, "key").out_features) // self.head_dim(block)

    def writers(self, block: nn.Module) -> tuple[list[nn.Linear], list[nn.Linear]]:
        """The matrices whose rows make the KV groups' values, and those whose rows make the neurons'.

        Each matrix has equally many rows per unit, in the order of the units.
        """
        return (
            [self.part(block, name) for name in self.ATTENTION_READERS],
            [self.part(block, name) for name in self.FFN_READERS],
        )

    def cut(
        self, block: nn.Module, *, groups: Tensor | None = None, kept_neurons: Tensor | None = None
    ) -> None:
        """Slice a block's tensors in place to the kept KV groups and FFN neurons, in the order given.

        Columns of the matrices that read them are removed too, as they are now: refit before or after.
        """
        attention, ffn = self.writers(block)
        if groups is not None:
            dim, size = self.head_dim(block), self.group_size(block)
            keys = (groups[:, None] * dim + torch.arange(dim, device=groups.device)).flatten()
            mixed = (groups[:, None] * size + torch.arange(size, device=groups.device)).flatten()
            for linear, rows in zip(attention, (mixed, keys, keys), strict=True):
                _slice(linear, rows)
            _slice(self.attention_out(block), columns=mixed)
            module: Any = block.get_submodule(self.attention)
            for name, count in (("num_heads", len(mixed) // dim), ("num_key_value_heads", len(groups))):
                if hasattr(module, name):
                    setattr(module, name, count)
        if kept_neurons is not None:
            for linear in ffn:
                _slice(linear, kept_neurons)
            _slice(self.ffn_out(block), columns=kept_neurons)

    def reorder_stream(self, block: nn.Module, order: Tensor) -> None:
        """Give a block the residual stream's values in another order, int64 [hidden], in place."""
        attention, ffn = self.writers(block)
        for linear in (*attention, *ffn):
            _slice(linear, columns=order)
        for linear in (self.attention_out(block), self.ffn_out(block)):
            _slice(linear, rows=order)
        for name in ("attention_norm", "mlp_norm") if self.style.mlp_norm else ("attention_norm",):
            for parameter in self.part(block, name).parameters():
                _reorder(parameter, 0, order)

    def reorder_tables(self, model: Any, order: Tensor) -> None:
        """The same for what is in no block: embedding, positions, last norm and head."""
        modules = [model.get_input_embeddings(), model.get_output_embeddings()]
        if self.style.learned_positions:
            modules.append(model.get_submodule(self.names["positions"]))
        for table in {id(module.weight): module.weight for module in modules}.values():  # some are tied
            _reorder(table, 1, order)
        for parameter in model.get_submodule(self.names["norm"]).parameters():
            _reorder(parameter, 0, order)

    def sizes(self, block: nn.Module) -> dict[str, int]:
        """The block's entry in `per_layer_config`."""
        return {
            "intermediate_size": self.ffn_out(block).in_features,
            "num_attention_heads": self.attention_out(block).in_features // self.head_dim(block),
            "num_key_value_heads": self.kv_groups(block),
        }

    def resize(self, block: nn.Module, entry: dict[str, int]) -> None:
        """Give an uninitialised block the sizes of its `per_layer_config` entry."""
        heads, groups = entry["num_attention_heads"], entry["num_key_value_heads"]
        with torch.device("meta"):  # where an uninitialised block is
            neurons = torch.arange(entry["intermediate_size"])
            self.cut(block, groups=torch.arange(groups), kept_neurons=neurons)
        if heads != groups * self.repeats(block):
            raise ValueError(f"{heads} heads do not share {groups} key/value heads evenly")

    def block_parameters(self, config: Mapping[str, Any]) -> tuple[int, int, int]:
        """Parameters of (one FFN neuron, one KV group, what a block has besides) under a config."""
        style = self.architecture.style_of(config, "config.json")
        repeats = config["num_attention_heads"] // config["num_key_value_heads"]

        def parameters(width: int, groups: int) -> int:
            block = Block(width, groups * repeats, groups)
            shapes = block_shapes(block, style, config["hidden_size"], config["head_dim"])
            return sum(map(math.prod, shapes.values()))

        rest = parameters(0, 0)
        return parameters(1, 0) - rest, parameters(0, 1) - rest, rest

    def keep_blocks(self, model: Any, kept: Sequence[int]) -> None:
        """Remove all blocks but `kept` (ascending indices) in place."""
        layers = self.blocks(model)
        parent, _, name = self.blocks_path.rpartition(".")
        setattr(model.get_submodule(parent), name, nn.ModuleList(layers[index] for index in kept))
        model.config.num_hidden_layers = len(kept)
        for index, block in enumerate(self.blocks(model)):
            block.get_submodule(self.attention).layer_idx = index  # its place in a KV cache

    def give_output_biases(self, model: Any) -> dict[str, Any]:
        """See that the matrices that read units can carry a bias, in place; what that changes in the config.

        transformers and llama.cpp know biases of all matrices of attention, or of the MLP, or none.

        Raises:
            EdgeError: the architecture has none.
        """
        if self.biasless:
            raise EdgeError(
                f"{self.model_type} models have no biases that could stand for what is removed",
                "use a method without bias compensation, or --refit",
            )
        changes = dict.fromkeys(self.architecture.bias_keys, True)
        for name in changes:
            setattr(model.config, name, True)
        for block in self.blocks(model):
            attention, mlp = self.writers(block)
            for linear in (*attention, self.attention_out(block), *mlp, self.ffn_out(block)):
                if linear.bias is None:
                    linear.bias = nn.Parameter(torch.zeros(linear.out_features))
        return changes


def attend(q: Tensor, k: Tensor, v: Tensor, position: Position) -> Tensor:
    """Causal attention's mixed values [batch, s, heads * dim] from q, k and v [batch, s, heads, dim]."""
    batch, length, _, dim = q.shape
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if position:
        q, k = apply_rotary_pos_emb(q, k, *position)
    with without_autocast(q):  # it would widen the softmax
        mixed, _ = causal_attention(q.to(v.dtype), k.to(v.dtype), v, dim**-0.5)
    return mixed.transpose(1, 2).reshape(batch, length, -1)


def norm(module: Any, hidden: Tensor) -> Tensor:
    """A norm in one fused pass where transformers' modules make several."""
    if isinstance(module, nn.LayerNorm):
        return functional.layer_norm(hidden, hidden.shape[-1:], module.weight, module.bias, module.eps)
    return functional.rms_norm(hidden, hidden.shape[-1:], module.weight, module.variance_epsilon)


def _reorder(parameter: Tensor, dim: int, order: Tensor) -> None:
    parameter.data = parameter.data.index_select(dim, order)


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
