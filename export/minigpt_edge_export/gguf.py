"""A decoder as a GGUF file, one tensor at a time: `llama` where all blocks are alike, `deci` where not.

Every llama.cpp build reads `llama`; `deci` is the LLaMA block with the sizes of each block in arrays.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from minigpt_edge_export.spec import Decoder
from minigpt_edge_export.tokenizer import GgufTokenizer, read_tokenizer
from minigpt_edge_runtime.errors import EdgeError, UsageError
from minigpt_edge_runtime.files import need_space, replacing

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGMLQuantizationType, GGUFWriter

_NAMES = {
    "embedding": "token_embd",
    "norm": "output_norm",
    "head": "output",
    "attention_norm": "attn_norm",
    "query": "attn_q",
    "key": "attn_k",
    "value": "attn_v",
    "attention_output": "attn_output",
    "mlp_norm": "ffn_norm",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}
# file type -> type of the matrices, general.file_type
_FILE_TYPES = {"f32": ("F32", 0), "f16": ("F16", 1), "bf16": ("BF16", 32)}
_METADATA = {
    "name": "general.name",
    "description": "general.description",
    "author": "general.author",
    "license": "general.license",
    "url": "general.url",
    "base_model": "general.base_model.0.name",
    "base_model_url": "general.base_model.0.repo_url",
}
_ROPE_FACTORS = "rope_freqs.weight"
_LARGEST_HALF = 65504.0


def gguf_name(name: str) -> str:
    """llama.cpp's name of a canonical weight: "blocks.3.query.weight" -> "blk.3.attn_q.weight"."""
    *block, part, kind = name.split(".")
    return (f"blk.{block[1]}." if block else "") + f"{_NAMES[part]}.{kind}"


def tensor_shapes(decoder: Decoder) -> dict[str, tuple[int, ...]]:
    """llama.cpp's name of each tensor of a file -> shape ([rows, columns] for matrices), in file order."""
    shapes = {gguf_name(name): shape for name, shape in decoder.shapes().items()}
    if decoder.rope.factors is None:
        return shapes
    return {_ROPE_FACTORS: (len(decoder.rope.factors),), **shapes}


def write_gguf(
    decoder: Decoder, path: Path, *, file_type: str = "f16", metadata: Mapping[str, str] | None = None
) -> None:
    """Write a decoder and its tokenizer; matrices in `file_type`, norms and biases in float32.

    The same decoder and metadata give the same bytes. Memory holds one tensor at a time.

    Args:
        decoder: its directory also holds the tokenizer.
        path: appears whole or not at all.
        file_type: "f16", "bf16" or "f32".
        metadata: any of name, description, author, license, url, base_model, base_model_url.

    Raises:
        UsageError: unknown file type or metadata key.
        EdgeError: the tokenizer can't be written, a weight does not fit into float16, or no space is left.
    """
    if file_type not in _FILE_TYPES:
        raise UsageError(f"unknown GGUF file type {file_type!r}", f"known: {', '.join(_FILE_TYPES)}")
    tokenizer = read_tokenizer(decoder.directory, decoder.vocab_size)
    writer = _header(decoder, file_type, metadata or {})
    tokenizer.write(writer)
    tensors = _add_tensors(writer, decoder, file_type)
    text = sum(len(token.encode()) for token in (*tokenizer.tokens, *tokenizer.merges))
    overhead = text + 16 * (len(tokenizer.tokens) + len(tokenizer.merges)) + 256 * len(tensors) + 2**16
    need_space(
        path.parent,
        sum(size for _, size in tensors.values()) + overhead,
        f"the {file_type.upper()} GGUF file",
    )
    with replacing(path) as temporary:
        _open(writer, temporary)
        try:
            for name, (kind, _) in tensors.items():
                writer.write_tensor_data(_stored(decoder, name, kind))
        finally:
            writer.close()


def write_outline(decoder: Decoder, path: Path, *, metadata: Mapping[str, str] | None = None) -> int:
    """Write the F16 file's header without tokenizer, and a hole for the weights.

    It is enough to ask llama.cpp what it would do.

    Returns:
        Bytes of the header, not yet padded.
    """
    writer = _header(decoder, "f16", metadata or {})
    tensors = _add_tensors(writer, decoder, "f16")
    _open(writer, path)
    writer.close()
    header = path.stat().st_size
    os.truncate(path, header + sum(size for _, size in tensors.values()) + 32 * (len(tensors) + 1))
    return header


def tokenizer_bytes(tokenizer: GgufTokenizer) -> int:
    """What a tokenizer adds to a header, in bytes."""
    from gguf import GGUFWriter

    sizes = []
    with tempfile.TemporaryDirectory() as folder:
        for filled in (True, False):
            path = Path(folder) / f"{filled}.gguf"
            writer = GGUFWriter(None, "llama")
            if filled:
                tokenizer.write(writer)
            _open(writer, path)
            writer.close()
            sizes.append(path.stat().st_size)
    return sizes[0] - sizes[1]


def _header(decoder: Decoder, file_type: str, metadata: Mapping[str, str]) -> GGUFWriter:
    """A writer with all metadata but the tokenizer's."""
    from gguf import GGML_QUANT_VERSION, GGUFWriter
    from gguf.utility import size_label

    unknown = sorted(set(metadata) - set(_METADATA))
    if unknown:
        raise UsageError(f"unknown GGUF metadata: {', '.join(unknown)}", f"known: {', '.join(_METADATA)}")
    writer = GGUFWriter(None, "llama" if decoder.uniform else "deci")
    writer.add_type("model")
    for key, name in _METADATA.items():
        if metadata.get(key):
            writer.add_string(name, metadata[key])
    if any(metadata.get(key) for key in ("base_model", "base_model_url")):
        writer.add_base_model_count(1)
    writer.add_size_label(size_label(decoder.parameters, decoder.parameters, 0, 0))
    writer.add_file_type(_FILE_TYPES[file_type][1])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_vocab_size(decoder.vocab_size)
    writer.add_context_length(decoder.context_length)
    writer.add_embedding_length(decoder.hidden_size)
    writer.add_block_count(len(decoder.blocks))
    for add, own in (
        (writer.add_feed_forward_length, [block.intermediate_size for block in decoder.blocks]),
        (writer.add_head_count, [block.heads for block in decoder.blocks]),
        (writer.add_head_count_kv, [block.kv_heads for block in decoder.blocks]),
    ):
        add(own[0] if decoder.uniform else own)
    # Without these llama.cpp takes hidden / heads of block 0, which pruned heads make wrong.
    writer.add_key_length(decoder.head_dim)
    writer.add_value_length(decoder.head_dim)
    writer.add_rope_dimension_count(decoder.head_dim)
    writer.add_rope_freq_base(decoder.rope.theta)
    writer.add_layer_norm_rms_eps(decoder.norm.eps)
    return writer


def _add_tensors(
    writer: GGUFWriter, decoder: Decoder, file_type: str
) -> dict[str, tuple[GGMLQuantizationType, int]]:
    """Announce all tensors; returns canonical name -> type, bytes, in file order."""
    import numpy as np
    from gguf import GGMLQuantizationType as Type

    shapes: dict[str, tuple[int, ...]] = decoder.shapes()
    if decoder.rope.factors is not None:
        shapes = {_ROPE_FACTORS: (len(decoder.rope.factors),), **shapes}
    tensors = {}
    for name, shape in shapes.items():
        kind = Type[_FILE_TYPES[file_type][0]] if len(shape) > 1 else Type.F32
        size = math.prod(shape) * (4 if kind == Type.F32 else 2)
        label = name if name == _ROPE_FACTORS else gguf_name(name)
        writer.add_tensor_info(label, shape, np.dtype(np.float32), size, raw_dtype=kind)
        tensors[name] = (kind, size)
    return tensors


def _open(writer: GGUFWriter, path: Path) -> None:
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()


def _stored(decoder: Decoder, name: str, kind: GGMLQuantizationType) -> np.ndarray:
    """A weight in the order and type that the file stores."""
    import numpy as np
    from gguf import GGMLQuantizationType as Type
    from gguf import quants

    if name == _ROPE_FACTORS:
        return np.asarray(decoder.rope.factors, dtype=np.float32)
    array = decoder.load(name)
    *block, part, _ = name.split(".")
    if block and part in ("query", "key"):
        sizes = decoder.blocks[int(block[1])]
        array = _interleaved(array, sizes.heads if part == "query" else sizes.kv_heads)
    if kind == Type.F16 and np.abs(array).max() > _LARGEST_HALF:
        raise EdgeError(
            f"{name} holds values beyond float16's {_LARGEST_HALF:,.0f}", "export it as bf16 or f32"
        )
    return quants.quantize(array, kind)


def _interleaved(array: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head from halves (x0…, y0…) to pairs (x0, y0, x1, y1, …), as llama.cpp rotates them."""
    pairs = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
    return pairs.swapaxes(1, 2).reshape(array.shape)
