"""A decoder as a GGUF file, one tensor at a time."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_VERSION, GGUFWriter, RopeScalingType, quants
from gguf import GGMLQuantizationType as Type
from gguf.utility import size_label

from minigpt_edge_export.architectures.base import GgufLayout
from minigpt_edge_export.decoder import Decoder
from minigpt_edge_export.gguf.layout import (
    Tensor,
    layout_of,
    load_tensor,
    stream_scale,
    tensors_of,
    width_of,
)
from minigpt_edge_export.gguf.tokenizer import GgufTokenizer, read_tokenizer
from minigpt_edge_export.weights import check_half
from minigpt_edge_runtime.errors import UsageError
from minigpt_edge_runtime.files import need_space, replacing

# file type -> type of the matrices, general.file_type
_FILE_TYPES = {"f32": ("F32", 0), "f16": ("F16", 1), "bf16": ("BF16", 32)}
_METADATA = {
    "name": "general.name",
    "license": "general.license",
    "base_model": "general.base_model.0.name",
}


def write_gguf(
    decoder: Decoder, path: Path, *, file_type: str = "f16", metadata: Mapping[str, str] | None = None
) -> None:
    """Write a decoder and its tokenizer; matrices in `file_type`, norms and biases in float32.

    The same decoder and metadata give the same bytes. Memory holds one tensor at a time.

    Args:
        decoder: its directory also holds the tokenizer.
        path: appears whole or not at all.
        file_type: "f16", "bf16" or "f32".
        metadata: any of name, license, base_model.

    Raises:
        UsageError: unknown file type or metadata key.
        EdgeError: the tokenizer can't be written, a weight does not fit into float16, or no space is left.
    """
    if file_type not in _FILE_TYPES:
        raise UsageError(f"unknown GGUF file type {file_type!r}", f"known: {', '.join(_FILE_TYPES)}")
    tokenizer = read_tokenizer(decoder.directory, decoder.vocab_size)
    layout = layout_of(decoder)
    contents = tensors_of(decoder, layout)
    writer = _header(decoder, layout, file_type, metadata or {})
    tokenizer.write(writer)
    tensors = _add_tensors(writer, contents, file_type)
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
                writer.write_tensor_data(
                    _stored(load_tensor(decoder, layout, name, contents[name]), name, kind)
                )
        finally:
            writer.close()


def write_outline(decoder: Decoder, path: Path, *, metadata: Mapping[str, str] | None = None) -> int:
    """Write the F16 file's header without tokenizer, and a hole for the weights.

    It is enough to ask llama.cpp what it would do.

    Returns:
        Bytes of the header, not yet padded.
    """
    layout = layout_of(decoder)
    writer = _header(decoder, layout, "f16", metadata or {})
    tensors = _add_tensors(writer, tensors_of(decoder, layout), "f16")
    _open(writer, path)
    writer.close()
    header = path.stat().st_size
    os.truncate(path, header + sum(size for _, size in tensors.values()) + 32 * (len(tensors) + 1))
    return header


def tokenizer_bytes(tokenizer: GgufTokenizer) -> int:
    """What a tokenizer adds to a header, in bytes."""
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


def _header(decoder: Decoder, layout: GgufLayout, file_type: str, metadata: Mapping[str, str]) -> GGUFWriter:
    """A writer with all metadata but the tokenizer's."""
    unknown = sorted(set(metadata) - set(_METADATA))
    if unknown:
        raise UsageError(f"unknown GGUF metadata: {', '.join(unknown)}", f"known: {', '.join(_METADATA)}")
    writer = GGUFWriter(None, layout.name)
    writer.add_type("model")
    for key, name in _METADATA.items():
        if metadata.get(key):
            writer.add_string(name, metadata[key])
    if metadata.get("base_model"):
        writer.add_base_model_count(1)
    writer.add_size_label(size_label(decoder.parameters, decoder.parameters, 0, 0))
    writer.add_file_type(_FILE_TYPES[file_type][1])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_vocab_size(decoder.vocab_size)
    writer.add_context_length(decoder.context_length)
    writer.add_embedding_length(decoder.hidden_size)
    writer.add_block_count(len(decoder.blocks))
    _add_sizes(writer, decoder, layout)
    return writer


def _add_sizes(writer: GGUFWriter, decoder: Decoder, layout: GgufLayout) -> None:
    """Sizes of the blocks, positions and norms."""
    blocks, width = decoder.blocks, width_of(decoder, layout)
    for add, own in (
        (writer.add_feed_forward_length, [width or block.intermediate_size for block in blocks]),
        (writer.add_head_count, [block.heads for block in blocks]),
        (writer.add_head_count_kv, [block.kv_heads for block in blocks]),
    ):
        add(own[0] if decoder.uniform or width else own)
    # Without these llama.cpp takes hidden / heads of block 0, which pruned heads make wrong.
    writer.add_key_length(decoder.head_dim)
    writer.add_value_length(decoder.head_dim)
    if decoder.rope:
        writer.add_rope_dimension_count(decoder.rope.dims)
        writer.add_rope_freq_base(decoder.rope.theta)
        if decoder.rope.scale != 1.0:
            writer.add_rope_scaling_type(RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(decoder.rope.scale)
    if decoder.style.norm == "rms":
        writer.add_layer_norm_rms_eps(decoder.eps)
    else:  # of a stream that is k times as large the mean square is k x k times as large
        writer.add_layer_norm_eps(decoder.eps * stream_scale(decoder, layout) ** 2)
    if layout.parallel_key:
        writer.add_parallel_residual(decoder.style.parallel)


def _add_tensors(
    writer: GGUFWriter, contents: Mapping[str, Tensor], file_type: str
) -> dict[str, tuple[Type, int]]:
    """Announce all tensors; returns name -> type, bytes, in file order."""
    tensors = {}
    for name, tensor in contents.items():
        kind = Type[_FILE_TYPES[file_type][0]] if len(tensor.shape) > 1 else Type.F32
        size = math.prod(tensor.shape) * (4 if kind == Type.F32 else 2)
        writer.add_tensor_info(name, tensor.shape, np.dtype(np.float32), size, raw_dtype=kind)
        tensors[name] = (kind, size)
    return tensors


def _open(writer: GGUFWriter, path: Path) -> None:
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()


def _stored(array: np.ndarray, name: str, kind: Type) -> np.ndarray:
    """Values in the type that the file stores."""
    if kind == Type.F16:
        check_half(array, name, "export it as bf16 or f32")
    return quants.quantize(array, kind)
