"""How a decoder becomes one of llama.cpp's architectures: its tensors, and what is done to their weights.

`llama`, `qwen2` and `qwen3` take blocks of one size. `deci` is the LLaMA block with sizes of its own for each
block and optional biases, `openelm` the Qwen3 block likewise. All others take whole attention and one width,
so narrower MLPs are padded with neurons of zeros, which add exactly nothing.

OPT has no architecture there. It is written as `gpt2`, whose GELU becomes OPT's ReLU in the limit
GELU(k x) / k: the residual stream carries k times its values, so that MLPs see k x and quantized weights stay
as they are (docs/opt-in-gguf.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minigpt_edge_export.architectures import ATTENTION
from minigpt_edge_export.decoder import Decoder
from minigpt_edge_runtime.errors import EdgeError

if TYPE_CHECKING:
    import numpy as np

ROPE_FACTORS = "rope_freqs.weight"
RELU_SCALE = 64.0  # k: a power of two, so that scaling changes no digit of a weight
NAMES = {
    "embedding": "token_embd",
    "positions": "position_embd",
    "norm": "output_norm",
    "head": "output",
    "attention_norm": "attn_norm",
    "query": "attn_q",
    "key": "attn_k",
    "value": "attn_v",
    "joined": "attn_qkv",
    "query_norm": "attn_q_norm",
    "key_norm": "attn_k_norm",
    "attention_output": "attn_output",
    "mlp_norm": "ffn_norm",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}
_PADDED = {"gate": 0, "up": 0, "down": 1}  # part -> axis that counts neurons
# OPT's weights that write to the residual stream or are read from it, and what they are multiplied by
_SCALED = {
    "embedding.weight": RELU_SCALE,
    "positions.weight": RELU_SCALE,
    "attention_output.weight": RELU_SCALE,
    "attention_output.bias": RELU_SCALE,
    "up.weight": RELU_SCALE,
    "up.bias": RELU_SCALE,
    "down.bias": RELU_SCALE,
}


@dataclass(frozen=True)
class Layout:
    """The architecture that a decoder is written as.

    Attributes:
        architecture: llama.cpp's name.
        paired: rows of query and key are stored in the pairs that are rotated together.
        joined: query, key and value are one tensor.
        width: neurons that all MLPs are padded to, where the architecture takes one width.
        biased: parts that must have a bias; one of zeros if the decoder has none.
        own_head: the head is stored even if it is the embedding.
        relu: OPT as gpt2.
    """

    architecture: str
    paired: bool = False
    joined: bool = False
    width: int | None = None
    biased: frozenset[str] = frozenset()
    own_head: bool = False
    relu: bool = False


def layout_of(decoder: Decoder) -> Layout:
    """The architecture for a decoder.

    Raises:
        EdgeError: llama.cpp has none that carries its attention.
    """
    kind, style = decoder.model_type, decoder.style
    whole = all(block.heads * decoder.head_dim == decoder.hidden_size for block in decoder.blocks)
    width = max(block.intermediate_size for block in decoder.blocks)
    if kind == "llama" or (kind == "qwen2" and not (decoder.uniform and whole)):
        return Layout("llama" if kind == "llama" and decoder.uniform else "deci", paired=True)
    if kind == "qwen2":
        return Layout("qwen2")
    if kind == "qwen3" and not decoder.uniform and takes_uneven(decoder):
        return Layout("openelm", joined=True)
    if len({(block.heads, block.kv_heads) for block in decoder.blocks}) > 1:
        raise EdgeError(
            f"{decoder.directory}: llama.cpp can't run a {kind} model whose blocks have different heads",
            "export it as ONNX, or prune it with --widths equal",
        )
    if kind == "qwen3":
        return Layout("qwen3", width=width)
    if not whole:
        raise EdgeError(
            f"{decoder.directory}: llama.cpp can't run a {kind} model that lacks heads",
            "export it as ONNX, or prune with a GGUF target given, which keeps all heads",
        )
    if kind == "stablelm":
        return Layout("stablelm", width=width, own_head=True)
    biased = frozenset((*ATTENTION, "up", "down"))
    if kind == "phi":
        return Layout("phi2", width=width, biased=biased | {"head"}, own_head=True)
    if kind == "gpt_neox":
        return Layout("gptneox", joined=True, width=width, biased=biased, own_head=True)
    return Layout("gpt2", joined=True, width=width, biased=biased, relu=style.activation == "relu")


def takes_uneven(decoder: Decoder) -> bool:
    """Whether llama.cpp runs such a decoder with blocks that differ in width and lack KV groups."""
    style = decoder.style
    return decoder.model_type in ("llama", "qwen2") or (
        decoder.model_type == "qwen3" and decoder.tied and not style.biased
    )


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file: its shape, and the canonical weights that it holds one after the other."""

    shape: tuple[int, ...]
    parts: tuple[str, ...]


def gguf_name(name: str) -> str:
    """llama.cpp's name of a canonical weight: "blocks.3.query.weight" -> "blk.3.attn_q.weight"."""
    *block, part, kind = name.split(".")
    return (f"blk.{block[1]}." if block else "") + f"{NAMES[part]}.{kind}"


def tensors_of(decoder: Decoder, layout: Layout) -> dict[str, Tensor]:
    """llama.cpp's name of each tensor of a file -> what it holds, in file order."""
    found: dict[str, Tensor] = {}
    if decoder.rope and decoder.rope.factors is not None:
        found[ROPE_FACTORS] = Tensor((len(decoder.rope.factors),), ())
    own = decoder.shapes()
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in own.items():
        shapes[name] = shape
        bias = f"{name.removesuffix('weight')}bias"
        if name.endswith(".weight") and name.split(".")[-2] in layout.biased and bias not in own:
            shapes[bias] = shape[:1]
    if layout.own_head and decoder.tied:
        shapes["head.weight"] = shapes["embedding.weight"]
        if "head" in layout.biased:
            shapes["head.bias"] = (decoder.vocab_size,)
    for name, shape in shapes.items():
        *block, part, kind = name.split(".")
        if layout.width and part in _PADDED and len(shape) > _PADDED[part]:
            axis = _PADDED[part]
            shape = (*shape[:axis], layout.width, *shape[axis + 1 :])
        if layout.joined and block and part in ATTENTION[:3]:
            joined = gguf_name(f"blocks.{block[1]}.joined.{kind}")
            before = found.pop(joined, Tensor((0, *shape[1:]), ()))
            found[joined] = Tensor((before.shape[0] + shape[0], *shape[1:]), (*before.parts, name))
        else:
            found[gguf_name(name)] = Tensor(shape, (name,))
    return found


def tensor_shapes(decoder: Decoder) -> dict[str, tuple[int, ...]]:
    """llama.cpp's name of each tensor of a file -> shape ([rows, columns] for matrices), in file order."""
    return {name: tensor.shape for name, tensor in tensors_of(decoder, layout_of(decoder)).items()}


def load_tensor(decoder: Decoder, layout: Layout, name: str, tensor: Tensor) -> np.ndarray:
    """A tensor's values, float32, in the order that the file stores."""
    import numpy as np

    if name == ROPE_FACTORS:
        assert decoder.rope is not None
        return np.asarray(decoder.rope.factors, dtype=np.float32)
    arrays = [_load_part(decoder, layout, part) for part in tensor.parts]
    array = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    if array.shape != tensor.shape:
        array = np.pad(array, [(0, w - n) for n, w in zip(array.shape, tensor.shape, strict=True)])
    return array


def _load_part(decoder: Decoder, layout: Layout, name: str) -> np.ndarray:
    import numpy as np

    *block, part, kind = name.split(".")
    shapes = decoder.shapes()
    if part == "head" and decoder.tied:
        name = "embedding.weight" if kind == "weight" else ""
    if name not in shapes:  # a bias that the architecture wants and the decoder has not
        sizes = {"head": decoder.vocab_size}
        rows = sizes.get(part) or shapes[f"blocks.{block[1]}.{part}.weight"][0]
        return np.zeros(rows, dtype=np.float32)
    array = decoder.load(name)
    if layout.paired and block and part in ("query", "key"):
        sizes_of = decoder.blocks[int(block[1])]
        array = _paired(array, sizes_of.heads if part == "query" else sizes_of.kv_heads)
    return array * np.float32(_scale(decoder, part, kind)) if layout.relu else array


def _scale(decoder: Decoder, part: str, kind: str) -> float:
    """What an OPT weight is multiplied by; a tied head is scaled too, which the last norm undoes."""
    if part == "norm" and decoder.tied:
        return 1 / RELU_SCALE
    return _SCALED.get(f"{part}.{kind}", 1.0)


def _paired(array: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head from halves (x0…, y0…) to pairs (x0, y0, x1, y1, …), as llama.cpp rotates them."""
    pairs = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
    return pairs.swapaxes(1, 2).reshape(array.shape)


def fitted_imatrix(
    imatrix: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """An importance matrix for a file's tensors: of joined ones, and of padded rows.

    Args:
        imatrix: GGUF name of a matrix as the checkpoint has it -> float32 [row length].
        shapes: name of each of the file's tensors -> shape, rows first.
    """
    import numpy as np

    found = dict(imatrix)
    for name in shapes:
        if name.endswith(".attn_qkv.weight"):
            block = name.removesuffix("attn_qkv.weight")
            same = [found.pop(f"{block}{part}.weight", None) for part in ("attn_q", "attn_k", "attn_v")]
            if same[0] is not None:
                found[name] = same[0]
        elif name.endswith(".ffn_down.weight") and name in found and found[name].ndim == 1:
            missing = shapes[name][1] - len(found[name])
            if missing > 0:  # no input, so any value serves
                found[name] = np.append(found[name], np.full(missing, found[name].mean(), np.float32))
    return found
