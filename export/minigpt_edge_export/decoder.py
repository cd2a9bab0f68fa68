"""A checkpoint directory as a decoder that belongs to no format: sizes, norms, positions, lazy weights.

It knows neither GGUF nor ONNX nor torch; what its architecture's file says is all that it knows of Hugging
Face names. The exporters know none of these, only the canonical names of `Decoder.shapes`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt_edge_export.architectures import architecture_of
from minigpt_edge_export.architectures.base import ATTENTION, BUFFERS, Architecture, Style
from minigpt_edge_export.weights import FACTORS, Weights, listed, weight_files, wrapper_of
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.files import read_json, understanding

if TYPE_CHECKING:
    import numpy as np

_NEEDED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
MOST = 2**31  # of any size, as GGUF writes them
MOST_THETA = 1e12  # base of the rotary frequencies; the largest in use is 1e9
_FACTOR_ERROR = 1e-4  # of the largest weight: what float32 products may differ by


@dataclass(frozen=True)
class Block:
    """The sizes of one block; `kv_heads` divides `heads`."""

    intermediate_size: int
    heads: int
    kv_heads: int


@dataclass(frozen=True)
class Rope:
    """Rotary positions of the first `dims` values of each head.

    `theta` is the base; `factors` is what each of the dims/2 frequencies is divided by, if anything, and
    `scale` what all are divided by (linear scaling).
    """

    theta: float
    dims: int
    factors: tuple[float, ...] | None = None
    scale: float = 1.0


@dataclass(frozen=True)
class Decoder:
    """A decoder of norm, attention and MLP blocks, and where its weights are.

    Weights have canonical names, "embedding.weight", "blocks.3.query.bias", …, in the order of `shapes`.
    Some matrices may also be there as two factors, of which they are the product.
    """

    directory: Path
    model_type: str
    hidden_size: int
    head_dim: int
    vocab_size: int
    context_length: int
    eps: float
    rope: Rope | None
    tied: bool
    style: Style
    blocks: tuple[Block, ...]
    weights: Weights = field(repr=False, compare=False)

    @property
    def architecture(self) -> Architecture:
        """What its architecture's file says."""
        return architecture_of(self.model_type)

    @property
    def uniform(self) -> bool:
        """Whether all blocks have the same sizes."""
        return len(set(self.blocks)) == 1

    @property
    def parameters(self) -> int:
        """Number of weights; a tied embedding counts once, and a matrix as the product it is."""
        return sum(math.prod(shape) for shape in self.shapes().values())

    @property
    def factored_parameters(self) -> int:
        """Number of weights of a file that keeps the matrices with a `rank` as two factors."""
        return sum(
            rank * sum(shape) if (rank := self.rank(name)) else math.prod(shape)
            for name, shape in self.shapes().items()
        )

    def rank(self, name: str) -> int | None:
        """The inner size of a matrix's factors if there are any and they hold fewer weights than it."""
        rank, *_ = self.weights.shapes.get(f"{self._module(name)}.a", (0,))
        shape = self.shapes()[name]
        return rank if 0 < rank * sum(shape) < math.prod(shape) else None

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Canonical name -> shape ([rows, columns] for matrices, rows being outputs), in file order."""
        shapes: dict[str, tuple[int, ...]] = {"embedding.weight": (self.vocab_size, self.hidden_size)}
        if self.style.learned_positions:
            shapes["positions.weight"] = (self.context_length, self.hidden_size)
        for index, block in enumerate(self.blocks):
            own = block_shapes(block, self.style, self.hidden_size, self.head_dim)
            shapes |= {f"blocks.{index}.{name}": shape for name, shape in own.items()}
        shapes |= _norm_shapes("norm", self.style, self.hidden_size)
        if not self.tied:
            shapes["head.weight"] = (self.vocab_size, self.hidden_size)
            if "head" in self.style.biased:
                shapes["head.bias"] = (self.vocab_size,)
        return shapes

    def load(self, name: str) -> np.ndarray:
        """The weights with a canonical name: float32 of the shape in `shapes`, read from disk now.

        Raises:
            EdgeError: they hold NaN or infinity.
        """
        import numpy as np

        array = self.weights.load(self.source_name(name))
        if not np.isfinite(array).all():
            raise EdgeError(
                f"{self.directory}: {name} holds NaN or infinity",
                "the training diverged; lower the learning rate",
            )
        *block, part, _ = name.split(".")
        if block and self.architecture.transposed and array.ndim > 1:
            array = array.T
        if self.architecture.joined and part in ATTENTION[:3]:
            array = self._third(array, self.blocks[int(block[1])], ATTENTION.index(part))
        if part == "positions":
            array = array[self.architecture.unused_positions :]
        return np.ascontiguousarray(array)

    def _third(self, array: np.ndarray, block: Block, which: int) -> np.ndarray:
        """Query, key or value out of the matrix or bias of all three."""
        if self.architecture.joined == "heads":
            split = array.reshape(block.heads, 3, self.head_dim, *array.shape[1:])
            return split[:, which].reshape(block.heads * self.head_dim, *array.shape[1:])
        rows = [heads * self.head_dim for heads in (block.heads, block.kv_heads, block.kv_heads)]
        start = sum(rows[:which])
        return array[start : start + rows[which]]

    def source_name(self, name: str) -> str:
        """The checkpoint's name: "blocks.3.up.weight" -> "model.layers.3.mlp.up_proj.weight"."""
        names = self.architecture.names
        *block, part, kind = name.split(".")
        if self.architecture.joined and part in ATTENTION[:3]:
            part = "joined"
        return (names["block"].format(index=block[1]) if block else "") + f"{names[part]}.{kind}"

    def source_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name in the checkpoint -> shape there, of all weights that it must have."""
        found: dict[str, tuple[int, ...]] = {}
        for name, shape in self.shapes().items():
            source = self.source_name(name)
            if name.startswith("positions."):
                shape = (shape[0] + self.architecture.unused_positions, *shape[1:])
            if source in found:  # the rows of query, key and value in one matrix
                shape = (found[source][0] + shape[0], *shape[1:])
            found[source] = shape
        if self.architecture.transposed:
            block = self.architecture.names["block"].partition("{")[0]
            found = {n: shape[::-1] if n.startswith(block) else shape for n, shape in found.items()}
        return found

    def _module(self, name: str) -> str:
        return self.source_name(name).rpartition(".")[0]

    def factors(self, name: str) -> tuple[np.ndarray, np.ndarray] | None:
        """(b, a), float32 [rows, rank] and [rank, columns], of a matrix with a `rank`; None for any other.

        Raises:
            EdgeError: their product is not the matrix.
        """
        import numpy as np

        if self.rank(name) is None:
            return None
        b, a = (self.weights.load(f"{self._module(name)}.{part}") for part in "ba")
        matrix = self.load(name)
        if not np.abs(b @ a - matrix).max() <= _FACTOR_ERROR * np.abs(matrix).max():
            raise EdgeError(
                f"{self.directory / FACTORS}: the product of {name}'s factors is not the matrix",
                f"the weights were changed after they were factored: delete {FACTORS}",
            )
        return b, a


def block_shapes(block: Block, style: Style, hidden: int, head_dim: int) -> dict[str, tuple[int, ...]]:
    """Canonical name within a block -> shape, in file order."""
    width, query, key = block.intermediate_size, block.heads * head_dim, block.kv_heads * head_dim
    matrices = {"query": (query, hidden), "key": (key, hidden), "value": (key, hidden)}
    matrices["attention_output"] = (hidden, query)
    matrices |= {"gate": (width, hidden), "up": (width, hidden), "down": (hidden, width)}
    shapes = _norm_shapes("attention_norm", style, hidden)
    shapes |= _norm_shapes("mlp_norm", style, hidden) if style.mlp_norm else {}
    if style.head_norms:
        shapes |= {"query_norm.weight": (head_dim,), "key_norm.weight": (head_dim,)}
    for name in (*ATTENTION, *style.inner, "down"):
        shapes[f"{name}.weight"] = matrices[name]
        if name in style.biased:
            shapes[f"{name}.bias"] = matrices[name][:1]
    return shapes


def _norm_shapes(name: str, style: Style, hidden: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.{kind}": (hidden,) for kind in style.norm_kinds}


def read_checkpoint(directory: Path) -> Decoder:
    """Read a Hugging Face directory's config and check its weights; weights are loaded later, one by one.

    Raises:
        EdgeError: the directory or a file is missing or damaged, the architecture is not known or uses what
            is not supported, or tensors are missing, unexpected or of a wrong shape (all are listed at once).
    """
    if not directory.is_dir():
        raise EdgeError(f"{directory} is not a directory", "give the directory that holds config.json")
    path = directory / "config.json"
    config = read_json(path)
    model_type = config.get("model_type") if isinstance(config, dict) else None
    architecture = architecture_of(model_type, path)
    return _decoder(directory, architecture, config, Weights(weight_files(directory)))


def check_weights(config: dict[str, Any], shapes: Mapping[str, tuple[int, ...]], source: Path) -> None:
    """Refuse a config and names and shapes of weights as `read_checkpoint` does, before they are written.

    Args:
        source: the directory or file that they are from, for messages.

    Raises:
        EdgeError: as `read_checkpoint`.
    """
    weights = Weights(())
    weights.shapes.update(shapes)
    _decoder(source, architecture_of(config.get("model_type"), source), config, weights)


def _decoder(
    directory: Path, architecture: Architecture, config: dict[str, Any], weights: Weights
) -> Decoder:
    path = directory / "config.json" if directory.is_dir() else directory
    with understanding(path, "use a complete checkpoint"):
        decoder = _described(directory, architecture, config, weights, path)
    _check_tensors(decoder)
    return decoder


def _described(
    directory: Path, architecture: Architecture, config: dict[str, Any], weights: Weights, path: Path
) -> Decoder:
    get = partial(architecture.get, config)
    eps = _check_config(architecture, config, path)
    hidden, heads = (int(get(key)) for key in ("hidden_size", "num_attention_heads"))
    head_dim = config.get("head_dim") or hidden // heads
    if get("num_hidden_layers") > len(weights.shapes):
        raise ValueError("it has more blocks than the weights have tensors")
    style = architecture.style_of(config, str(path))
    return Decoder(
        directory=directory,
        model_type=config["model_type"],
        hidden_size=hidden,
        head_dim=head_dim,
        vocab_size=config["vocab_size"],
        context_length=int(get("max_position_embeddings", 2048)),
        eps=eps,
        rope=None if style.learned_positions else _rope(config, head_dim, architecture.rotary_share, path),
        tied=bool(config.get("tie_word_embeddings", architecture.tied)),
        style=style,
        blocks=_blocks(architecture, config, path),
        weights=weights,
    )


def _check_config(architecture: Architecture, config: dict[str, Any], path: Path) -> float:
    """What norms add to the mean square; EdgeError if a number that is needed is not there."""
    get, keys = partial(architecture.get, config), architecture.keys
    eps = get("eps", architecture.eps)
    values = {keys.get(key, key): get(key) for key in _NEEDED}
    values[keys["eps"]] = eps
    if not architecture.widening:
        values[keys.get("intermediate_size", "intermediate_size")] = get("intermediate_size")
    values["max_position_embeddings"] = get("max_position_embeddings", 2048)
    missing = [n for n, v in values.items() if not isinstance(v, int | float) or not 0 < v < MOST]
    if missing:
        raise EdgeError(f"{path} lacks a positive {', '.join(missing)}", "use a complete checkpoint")
    return float(eps)


def _blocks(architecture: Architecture, config: dict[str, Any], path: Path) -> tuple[Block, ...]:
    """The sizes of every block: those of per_layer_config, else the global ones."""
    get = partial(architecture.get, config)
    count, heads = (int(get(key)) for key in ("num_hidden_layers", "num_attention_heads"))
    shared = {
        "intermediate_size": architecture.width(config),
        "num_attention_heads": heads,
        "num_key_value_heads": config.get("num_key_value_heads") or heads,
    }
    own: Mapping[str, Any] = config.get("per_layer_config") or {}
    wrong = sorted(set(own) - {str(index) for index in range(count)})
    if wrong:
        raise EdgeError(f"{path}: per_layer_config names blocks that do not exist: {', '.join(wrong)}", None)
    blocks = []
    for index in range(count):
        sizes = {**shared, **own.get(str(index), {})}
        block = Block(*(int(sizes[name]) for name in shared))
        if min(block.intermediate_size, block.heads, block.kv_heads) < 1 or block.heads % block.kv_heads:
            raise EdgeError(
                f"{path}: block {index} can't be exported: {block.intermediate_size} neurons, "
                f"{block.heads} heads, {block.kv_heads} key/value heads",
                "every block needs neurons, and heads that are a multiple of its key/value heads",
            )
        blocks.append(block)
    return tuple(blocks)


def _rope(config: dict[str, Any], head_dim: int, share: float, path: Path) -> Rope:
    """Rotary settings, as transformers 5 writes them (rope_parameters) or as before.

    `share` of a head's values is rotated where the config does not say how many.
    """
    given = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    theta = float(given.get("rope_theta") or config.get("rope_theta") or config.get("rotary_emb_base") or 1e4)
    if not 0 < theta < MOST_THETA:
        raise ValueError(f"rope_theta is {theta}")
    kind = given.get("rope_type") or given.get("type") or "default"
    for key in ("rotary_pct", "partial_rotary_factor"):
        share = config.get(key) or share
    dims = int(head_dim * given.get("partial_rotary_factor", share))
    if kind not in ("default", "llama3", "linear") or dims % 2:
        raise EdgeError(
            f"{path}: rotary positions of type {kind!r} on {dims} of {head_dim} values of a head can't be "
            "exported",
            "known types: default, linear, llama3, on an even number of values",
        )
    factors = llama3_factors(theta, dims, given) if kind == "llama3" else None
    return Rope(theta, dims, factors, float(given["factor"]) if kind == "linear" else 1.0)


def llama3_factors(theta: float, dims: int, given: Mapping[str, Any]) -> tuple[float, ...]:
    """What llama3 scaling divides frequencies by: 1 for short waves, `factor` for long, smooth between."""
    factor, old = float(given["factor"]), float(given["original_max_position_embeddings"])
    low, high = float(given["low_freq_factor"]), float(given["high_freq_factor"])
    factors = []
    for index in range(0, dims, 2):
        turns = old / (2 * math.pi * theta ** (index / dims))  # full rotations in the original context
        smooth = min(max((turns - low) / (high - low), 0.0), 1.0)
        factors.append(1.0 / ((1.0 - smooth) / factor + smooth))
    return tuple(factors)


def _check_tensors(decoder: Decoder) -> None:
    wanted = decoder.source_shapes()
    found = decoder.weights.shapes
    for name, shape in decoder.shapes().items():
        a, b = (f"{decoder.source_name(name).rpartition('.')[0]}.{part}" for part in "ab")
        if name.startswith("blocks.") and len(shape) > 1 and (a in found or b in found):
            rank = (found.get(a) or (0,))[0]
            wanted |= {a: (rank, shape[1]), b: (shape[0], rank)}
    head = decoder.source_name("head.weight")
    ignored = {name for name in found if BUFFERS.search(name) or (decoder.tied and name == head)}
    problems = [f"missing {name}" for name in wanted if name not in found]
    problems += [f"unexpected {name}" for name in sorted(found.keys() - wanted.keys() - ignored)]
    problems += [
        f"{name} is {list(found[name])}, not {list(shape)}"
        for name, shape in wanted.items()
        if name in found and found[name] != shape
    ]
    if problems and (wrapper := wrapper_of(found, decoder.source_name("embedding.weight"))):
        prefix, maker = wrapper
        raise EdgeError(
            f"the weights in {decoder.directory} have {prefix!r} in their names, which {maker}",
            "save the model that is inside the wrapper, or take these parts off the names",
        )
    if problems:
        raise EdgeError(
            f"the weights in {decoder.directory} do not fit its config.json: {listed(problems)}",
            "config.json and the safetensors files must come from the same run",
        )
