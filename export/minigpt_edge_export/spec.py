"""A checkpoint directory as a decoder that belongs to no format: sizes, norms, positions, lazy weights.

It does not know GGUF or ONNX, and it does not know torch; the exporters do not know Hugging Face names.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.files import os_error, read_json

if TYPE_CHECKING:
    import numpy as np

# part of a decoder -> its name in a checkpoint of that model type
FAMILIES: dict[str, dict[str, str]] = {
    "llama": {
        "embedding": "model.embed_tokens",
        "norm": "model.norm",
        "head": "lm_head",
        "block": "model.layers.{index}.",
        "attention_norm": "input_layernorm",
        "query": "self_attn.q_proj",
        "key": "self_attn.k_proj",
        "value": "self_attn.v_proj",
        "attention_output": "self_attn.o_proj",
        "mlp_norm": "post_attention_layernorm",
        "gate": "mlp.gate_proj",
        "up": "mlp.up_proj",
        "down": "mlp.down_proj",
    },
}
_FLOATS = ("F32", "F16", "BF16", "F64")
_NEEDED = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "vocab_size",
    "rms_norm_eps",
)
_SHOWN = 20  # tensors listed in an error before "and n more"
FACTORS = "factors.safetensors"  # beside the weights: matrices that are products of two smaller ones
_FACTOR_ERROR = 1e-4  # of the largest weight: what float32 products may differ by


@dataclass(frozen=True)
class Block:
    """The sizes of one block; `kv_heads` divides `heads`."""

    intermediate_size: int
    heads: int
    kv_heads: int


@dataclass(frozen=True)
class Norm:
    """`kind` is "rms"; `eps` is added to the mean square."""

    kind: str
    eps: float


@dataclass(frozen=True)
class Rope:
    """Rotary positions: the base, and what each of the head_dim/2 frequencies is divided by, if anything."""

    theta: float
    factors: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Decoder:
    """A decoder of norm, attention and gated MLP blocks, and where its weights are.

    Weights have canonical names, "embedding.weight", "blocks.3.query.bias", …, in the order of `shapes`.
    Some matrices may also be there as two factors, of which they are the product.
    """

    directory: Path
    model_type: str
    hidden_size: int
    head_dim: int
    vocab_size: int
    context_length: int
    activation: str
    norm: Norm
    rope: Rope
    tied: bool
    attention_bias: bool
    mlp_bias: bool
    blocks: tuple[Block, ...]
    weights: Weights = field(repr=False, compare=False)

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
        rank, *_ = self.weights.shapes.get(f"{_module(self.model_type, name)}.a", (0,))
        shape = self.shapes()[name]
        return rank if 0 < rank * sum(shape) < math.prod(shape) else None

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Canonical name -> shape ([rows, columns] for matrices, rows being outputs), in file order."""
        shapes: dict[str, tuple[int, ...]] = {"embedding.weight": (self.vocab_size, self.hidden_size)}
        for index, block in enumerate(self.blocks):
            shapes |= {f"blocks.{index}.{name}": shape for name, shape in self._block_shapes(block).items()}
        shapes["norm.weight"] = (self.hidden_size,)
        if not self.tied:
            shapes["head.weight"] = (self.vocab_size, self.hidden_size)
        return shapes

    def _block_shapes(self, block: Block) -> dict[str, tuple[int, ...]]:
        hidden, width = self.hidden_size, block.intermediate_size
        query, key = block.heads * self.head_dim, block.kv_heads * self.head_dim
        attention = {"query": (query, hidden), "key": (key, hidden), "value": (key, hidden)}
        attention["attention_output"] = (hidden, query)
        mlp = {"gate": (width, hidden), "up": (width, hidden), "down": (hidden, width)}
        shapes: dict[str, tuple[int, ...]] = {
            "attention_norm.weight": (hidden,),
            "mlp_norm.weight": (hidden,),
        }
        for matrices, biased in ((attention, self.attention_bias), (mlp, self.mlp_bias)):
            for name, shape in matrices.items():
                shapes[f"{name}.weight"] = shape
                if biased:
                    shapes[f"{name}.bias"] = shape[:1]
        return shapes

    def load(self, name: str) -> np.ndarray:
        """The weights with a canonical name: float32 of the shape in `shapes`, read from disk now.

        Raises:
            EdgeError: they hold NaN or infinity.
        """
        import numpy as np

        array = self.weights.load(_source_name(self.model_type, name))
        if not np.isfinite(array).all():
            raise EdgeError(
                f"{self.directory}: {name} holds NaN or infinity",
                "the training diverged; lower the learning rate",
            )
        return array

    def factors(self, name: str) -> tuple[np.ndarray, np.ndarray] | None:
        """(b, a), float32 [rows, rank] and [rank, columns], of a matrix with a `rank`; None for any other.

        Raises:
            EdgeError: their product is not the matrix.
        """
        import numpy as np

        if self.rank(name) is None:
            return None
        b, a = (self.weights.load(f"{_module(self.model_type, name)}.{part}") for part in "ba")
        matrix = self.load(name)
        if not np.abs(b @ a - matrix).max() <= _FACTOR_ERROR * np.abs(matrix).max():
            raise EdgeError(
                f"{self.directory / FACTORS}: the product of {name}'s factors is not the matrix",
                f"the weights were changed after they were factored: delete {FACTORS}",
            )
        return b, a


class Weights:
    """The tensors of safetensors files, by the names they have there."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._files: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._types: dict[str, str] = {}
        for path in paths:
            self._open(path)

    def _open(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="np") as file:
                for name in file.keys():  # noqa: SIM118 (no mapping)
                    view = file.get_slice(name)
                    self._files[name] = path
                    self.shapes[name], self._types[name] = tuple(view.get_shape()), view.get_dtype()
        except SafetensorError as error:
            raise EdgeError(
                f"{path} is not a whole safetensors file ({error})",
                "delete it and run the stage that wrote it again",
            ) from error
        except OSError as error:
            raise os_error(error, path) from error
        bad = sorted(
            f"{name} ({self._types[name]})" for name in self.shapes if self._types[name] not in _FLOATS
        )
        if bad:
            raise EdgeError(
                f"{path} holds weights that are no floats: {_listed(bad)}", "export the unquantized model"
            )

    def load(self, name: str) -> np.ndarray:
        """A tensor as contiguous float32."""
        import numpy as np
        from safetensors import safe_open

        if self._types[name] == "BF16":
            return self._load_bfloat16(name)
        with safe_open(self._files[name], framework="np") as file:
            return np.ascontiguousarray(file.get_tensor(name), dtype=np.float32)

    def _load_bfloat16(self, name: str) -> np.ndarray:
        """numpy has no bfloat16, so safetensors can't give it: it is the upper half of a float32."""
        import numpy as np

        with open(self._files[name], "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            start = json.loads(file.read(length))[name]["data_offsets"][0] + 8 + length
            file.seek(start)
            halves = np.fromfile(file, dtype="<u2", count=math.prod(self.shapes[name]))
        return (halves.astype("<u4") << 16).view("<f4").reshape(self.shapes[name])


def read_checkpoint(directory: Path) -> Decoder:
    """Read a Hugging Face directory's config and check its weights; weights are loaded later, one by one.

    Raises:
        EdgeError: the directory or a file is missing or damaged, the architecture is not known or uses what
            is not supported, or tensors are missing, unexpected or of a wrong shape (all are listed at once).
    """
    if not directory.is_dir():
        raise EdgeError(f"{directory} is not a directory", "give the directory that holds config.json")
    config = read_json(directory / "config.json")
    model_type = config.get("model_type") if isinstance(config, dict) else None
    if model_type not in FAMILIES:
        raise EdgeError(
            f"the architecture {model_type!r} in {directory / 'config.json'} is not known",
            f"known architectures: {', '.join(sorted(FAMILIES))}",
        )
    path = directory / "config.json"
    _check_config(config, path)
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    decoder = Decoder(
        directory=directory,
        model_type=model_type,
        hidden_size=hidden,
        head_dim=head_dim,
        vocab_size=config["vocab_size"],
        context_length=int(config.get("max_position_embeddings", 2048)),
        activation=config.get("hidden_act", "silu"),
        norm=Norm("rms", float(config["rms_norm_eps"])),
        rope=_rope(config, head_dim, path),
        tied=bool(config.get("tie_word_embeddings", False)),
        attention_bias=bool(config.get("attention_bias", False)),
        mlp_bias=bool(config.get("mlp_bias", False)),
        blocks=_blocks(config, path),
        weights=Weights(_weight_files(directory)),
    )
    _check_tensors(decoder)
    return decoder


def _check_config(config: dict[str, Any], path: Path) -> None:
    missing = [name for name in _NEEDED if not isinstance(config.get(name), int | float) or config[name] <= 0]
    if missing:
        raise EdgeError(f"{path} lacks a positive {', '.join(missing)}", "use a complete checkpoint")
    if config.get("hidden_act", "silu") != "silu":
        raise EdgeError(
            f"{path}: the activation {config['hidden_act']!r} can't be exported", "only silu is known"
        )


def _blocks(config: dict[str, Any], path: Path) -> tuple[Block, ...]:
    """The sizes of every block: those of per_layer_config, else the global ones."""
    count, heads = int(config["num_hidden_layers"]), config["num_attention_heads"]
    shared = {
        "intermediate_size": config["intermediate_size"],
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


def _rope(config: dict[str, Any], head_dim: int, path: Path) -> Rope:
    """Rotary settings, as transformers 5 writes them (rope_parameters) or as before."""
    given = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    theta = float(given.get("rope_theta") or config.get("rope_theta") or 10000.0)
    kind = given.get("rope_type") or given.get("type") or "default"
    if kind not in ("default", "llama3") or given.get("partial_rotary_factor", 1.0) != 1.0 or head_dim % 2:
        raise EdgeError(
            f"{path}: rotary positions of type {kind!r} on heads of {head_dim} can't be exported",
            "known types: default, llama3, on whole heads of even size",
        )
    return Rope(theta, _llama3_factors(theta, head_dim, given) if kind == "llama3" else None)


def _llama3_factors(theta: float, head_dim: int, given: Mapping[str, Any]) -> tuple[float, ...]:
    """What llama3 scaling divides frequencies by: 1 for short waves, `factor` for long, smooth between."""
    factor, old = float(given["factor"]), float(given["original_max_position_embeddings"])
    low, high = float(given["low_freq_factor"]), float(given["high_freq_factor"])
    factors = []
    for index in range(0, head_dim, 2):
        turns = old / (2 * math.pi * theta ** (index / head_dim))  # full rotations in the original context
        smooth = min(max((turns - low) / (high - low), 0.0), 1.0)
        factors.append(1.0 / ((1.0 - smooth) / factor + smooth))
    return tuple(factors)


def _weight_files(directory: Path) -> list[Path]:
    """The one safetensors file, or those that the index names; and that of the factors."""
    index = directory / "model.safetensors.index.json"
    single = directory / "model.safetensors"
    names = sorted(set(read_json(index)["weight_map"].values())) if index.exists() else [single.name]
    missing = [name for name in names if not (directory / name).is_file()]
    if missing:
        raise EdgeError(f"{directory} lacks {_listed(missing)}", "use a complete checkpoint")
    names += [FACTORS] * (directory / FACTORS).is_file()
    return [directory / name for name in names]


def _source_name(model_type: str, name: str) -> str:
    """A checkpoint's name of a canonical one: "blocks.3.up.weight" -> "model.layers.3.mlp.up_proj.weight"."""
    names = FAMILIES[model_type]
    *block, part, kind = name.split(".")
    return (names["block"].format(index=block[1]) if block else "") + f"{names[part]}.{kind}"


def _module(model_type: str, name: str) -> str:
    return _source_name(model_type, name).rpartition(".")[0]


def _check_tensors(decoder: Decoder) -> None:
    wanted = {_source_name(decoder.model_type, name): shape for name, shape in decoder.shapes().items()}
    found = decoder.weights.shapes
    for name, shape in decoder.shapes().items():
        a, b = (f"{_module(decoder.model_type, name)}.{part}" for part in "ab")
        if name.startswith("blocks.") and len(shape) > 1 and (a in found or b in found):
            rank = (found.get(a) or (0,))[0]
            wanted |= {a: (rank, shape[1]), b: (shape[0], rank)}
    head = _source_name(decoder.model_type, "head.weight")
    ignored = {
        name for name in found if name.endswith("rotary_emb.inv_freq") or (decoder.tied and name == head)
    }
    problems = [f"missing {name}" for name in wanted if name not in found]
    problems += [f"unexpected {name}" for name in sorted(found.keys() - wanted.keys() - ignored)]
    problems += [
        f"{name} is {list(found[name])}, not {list(shape)}"
        for name, shape in wanted.items()
        if name in found and found[name] != shape
    ]
    if problems:
        raise EdgeError(
            f"the weights in {decoder.directory} do not fit its config.json: {_listed(problems)}",
            "config.json and the safetensors files must come from the same run",
        )


def _listed(items: list[str]) -> str:
    shown = ", ".join(items[:_SHOWN])
    return shown + (f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else "")
