"""A decoder as the tensors of a GGUF file: their shapes, and what is done to their weights.

Which of llama.cpp's architectures it becomes, and how that one stores it, is data in the file of its own
architecture (`GgufLayout` in `architectures.base`); tensor names are in the runtime's `formats.gguf_names`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from minigpt_edge_export.architectures.base import ATTENTION, GgufLayout
from minigpt_edge_export.decoder import Decoder
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.formats.gguf_names import PARTS, ROPE_FACTORS, gguf_name

_PADDED = {"gate": 0, "up": 0, "down": 1}  # part -> axis that counts neurons
# Weights that a file of a decoder with ReLU holds `relu_scale` times as large: they write to the residual
# stream, which carries as many times its values, or make the MLP see as many times what it reads.
_SCALED = {f"{part}.weight" for part in ("embedding", "positions", "attention_output", "up")}
_SCALED |= {f"{part}.bias" for part in ("attention_output", "up", "down")}


def layout_of(decoder: Decoder) -> GgufLayout:
    """The first of llama.cpp's architectures that takes a decoder.

    Raises:
        EdgeError: llama.cpp has none that carries its attention.
    """
    same_heads = len(_heads(decoder)) == 1
    takes = {"own": True, "padded": same_heads, "equal": decoder.uniform}
    for layout in decoder.architecture.gguf:
        if takes[layout.blocks] and _carries(layout, decoder):
            return layout
    kind = decoder.model_type
    if not same_heads:
        raise EdgeError(
            f"{decoder.directory}: llama.cpp can't run a {kind} model whose blocks have different heads",
            "export it as ONNX, or prune it with --widths equal",
        )
    raise EdgeError(
        f"{decoder.directory}: llama.cpp can't run a {kind} model that lacks heads",
        "export it as ONNX, or prune with a GGUF target given, which keeps all heads",
    )


def takes_uneven(decoder: Decoder) -> bool:
    """Whether llama.cpp runs such a decoder with blocks that differ in width and lack KV groups."""
    return any(layout.blocks == "own" and _carries(layout, decoder) for layout in decoder.architecture.gguf)


def _heads(decoder: Decoder) -> set[tuple[int, int]]:
    return {(block.heads, block.kv_heads) for block in decoder.blocks}


def _carries(layout: GgufLayout, decoder: Decoder) -> bool:
    """Whether a layout has what a decoder computes, the differences between its blocks apart."""
    whole = all(heads * decoder.head_dim == decoder.hidden_size for heads, _ in _heads(decoder))
    plain = decoder.tied and not decoder.style.biased
    return (whole or not layout.whole) and (plain or not layout.plain)


def width_of(decoder: Decoder, layout: GgufLayout) -> int | None:
    """The neurons that all MLPs are padded to, where the layout takes one width."""
    padded = layout.blocks == "padded"
    return max(block.intermediate_size for block in decoder.blocks) if padded else None


def stream_scale(decoder: Decoder, layout: GgufLayout) -> float:
    """What the residual stream's values are multiplied by in the file."""
    return layout.relu_scale if decoder.style.activation == "relu" else 1.0


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file: its shape, and the canonical weights that it holds one after the other."""

    shape: tuple[int, ...]
    parts: tuple[str, ...]


def tensors_of(decoder: Decoder, layout: GgufLayout) -> dict[str, Tensor]:
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
    width = width_of(decoder, layout)
    for name, shape in shapes.items():
        *block, part, kind = name.split(".")
        if width and part in _PADDED and len(shape) > _PADDED[part]:
            axis = _PADDED[part]
            shape = (*shape[:axis], width, *shape[axis + 1 :])
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


def load_tensor(decoder: Decoder, layout: GgufLayout, name: str, tensor: Tensor) -> np.ndarray:
    """A tensor's values, float32, in the order that the file stores."""
    if name == ROPE_FACTORS:
        assert decoder.rope is not None
        return np.asarray(decoder.rope.factors, dtype=np.float32)
    arrays = [_load_part(decoder, layout, part) for part in tensor.parts]
    array = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    if array.shape != tensor.shape:
        array = np.pad(array, [(0, w - n) for n, w in zip(array.shape, tensor.shape, strict=True)])
    return array


def _load_part(decoder: Decoder, layout: GgufLayout, name: str) -> np.ndarray:
    *block, part, kind = name.split(".")
    shapes = decoder.shapes()
    if part == "head" and decoder.tied:
        name = "embedding.weight" if kind == "weight" else ""
    if name not in shapes:  # a bias that the architecture wants and the decoder has not
        rows = decoder.vocab_size if part == "head" else shapes[f"blocks.{block[1]}.{part}.weight"][0]
        return np.zeros(rows, dtype=np.float32)
    array = decoder.load(name)
    if layout.paired and block and part in ("query", "key"):
        sizes_of = decoder.blocks[int(block[1])]
        array = _paired(array, sizes_of.heads if part == "query" else sizes_of.kv_heads)
    scale = stream_scale(decoder, layout)
    if scale != 1.0 and f"{part}.{kind}" in _SCALED:
        return array * np.float32(scale)
    if scale != 1.0 and part == "norm" and decoder.tied:  # the head is the embedding, which is scaled
        return array * np.float32(1 / scale)
    return array


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
    found = dict(imatrix)
    for name, shape in shapes.items():
        *block, part, kind = name.split(".")
        if part == PARTS["joined"] and kind == "weight":
            thirds = (gguf_name(f"blocks.{block[1]}.{third}.weight") for third in ATTENTION[:3])
            same = [found.pop(third, None) for third in thirds]
            if same[0] is not None:
                found[name] = same[0]
        elif part == PARTS["down"] and name in found and found[name].ndim == 1:
            missing = shape[1] - len(found[name])
            if missing > 0:  # no input, so any value serves
                found[name] = np.append(found[name], np.full(missing, found[name].mean(), np.float32))
    return found
