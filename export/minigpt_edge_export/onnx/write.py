"""A decoder as an ONNX directory: one graph for prefill and decode, whose cache is written in place.

The graph is written node by node with onnx.helper, from fused operators that onnxruntime runs fast on a CPU
(docs/decisions.md compares the ways to get one). Its inputs and outputs are those of onnxruntime-genai, so
that genai runs the directory as it is; it is complete in itself, tokenizer included.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minigpt_edge_export.decoder import Block, Decoder
from minigpt_edge_export.onnx.genai import genai_config
from minigpt_edge_export.onnx.gptq import joined
from minigpt_edge_export.onnx.graph import Graph
from minigpt_edge_export.onnx.positions import lengths, rotary
from minigpt_edge_export.onnx.weights import Packed, quantize_matrix, smallest_block
from minigpt_edge_export.targets import Precision
from minigpt_edge_export.weights import check_half
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.files import need_space, os_error, publish_directory, write_json
from minigpt_edge_runtime.formats.gguf_names import EMBEDDING, HEAD, gguf_name
from minigpt_edge_runtime.formats.onnx_header import CONFIG
from minigpt_edge_runtime.formats.tokenizer_files import TOKENIZER, TOKENIZER_FILES

MODEL = "model.onnx"
_HEAD_MULTIPLE = 16  # GroupQueryAttention with rotary positions takes no other head sizes.


def write_onnx(
    decoder: Decoder,
    directory: Path,
    precision: Precision,
    *,
    imatrix: Mapping[str, np.ndarray] | None = None,
    packed: Mapping[str, Packed] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write model.onnx, model.onnx.data, genai_config.json and the tokenizer's files.

    The same arguments give the same bytes. Memory holds one matrix at a time.

    Args:
        decoder: its directory also holds the tokenizer.
        directory: appears whole or not at all; must not exist.
        imatrix: GGUF tensor name -> float32 [row length], mean squared input, for integer precisions.
        packed: what `gptq.pack_matrices` made of matrices of the blocks for this precision.
        metadata: further facts to store, such as name, license and base_model.

    Raises:
        EdgeError: a weight does not fit into float16, the size of a head can't be computed, the tokenizer is
            missing, the directory exists, or no space is left.
    """
    if directory.exists():
        raise EdgeError(f"{directory} exists", "choose another directory, or delete it")
    if decoder.rope and (decoder.head_dim % _HEAD_MULTIPLE or decoder.rope.dims % _HEAD_MULTIPLE):
        raise EdgeError(
            f"{decoder.directory} has heads of {decoder.head_dim} values and rotates {decoder.rope.dims} of "
            f"them, onnxruntime computes multiples of {_HEAD_MULTIPLE} only",
            "export it as GGUF",
        )
    if not (decoder.directory / TOKENIZER).is_file():
        raise EdgeError(f"{decoder.directory} lacks {TOKENIZER}", "use a complete checkpoint")
    size = decoder.factored_parameters * {"fp32": 4, "fp16": 2}.get(precision.name, precision.bits / 8 + 0.3)
    need_space(directory.parent, int(size) + 2**22, f"the {precision.name} ONNX model")
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        with Graph(partial / MODEL) as graph:
            _Writer(graph, decoder, precision, imatrix or {}, packed or {}).write()
            graph.save(_facts(decoder, precision, metadata or {}))
        write_json(partial / CONFIG, genai_config(decoder, MODEL))
        for name in TOKENIZER_FILES:
            if (decoder.directory / name).is_file():
                shutil.copyfile(decoder.directory / name, partial / name)
        publish_directory(partial, directory)
    except OSError as error:
        raise os_error(error, directory) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _facts(decoder: Decoder, precision: Precision, metadata: Mapping[str, str]) -> dict[str, str]:
    facts: dict[str, Any] = {
        **metadata,
        "architecture": decoder.model_type,
        "quantization": precision.name.upper(),
        "parameters": decoder.factored_parameters,
        "vocabulary": decoder.vocab_size,
        "hidden_size": decoder.hidden_size,
        "tied_embeddings": decoder.tied,
        "ffn_width": [block.intermediate_size for block in decoder.blocks],
        "heads": [block.heads for block in decoder.blocks],
        "kv_heads": [block.kv_heads for block in decoder.blocks],
    }
    if precision.bits:
        facts["block_size"] = precision.block_size
        facts["symmetric"] = precision.symmetric
        facts["head"] = f"INT{precision.head_bits}, blocks of {precision.head_block_size}"
        facts["accuracy_level"] = precision.accuracy_level
    return {f"minigpt_edge.{name}": json.dumps(value) for name, value in facts.items()}


@dataclass(frozen=True)
class _Writer:
    """Writes one decoder into a graph; methods take and return the names of values."""

    graph: Graph
    decoder: Decoder
    precision: Precision
    imatrix: Mapping[str, np.ndarray]
    packed: Mapping[str, Packed]

    def write(self) -> None:
        graph, decoder = self.graph, self.decoder
        graph.input("input_ids", "int64", ["batch", "sequence"])
        graph.input("attention_mask", "int64", ["batch", "total"])
        graph.output("logits", "float32", ["batch", "rows", decoder.vocab_size])
        known = lengths(graph)
        if decoder.rope:
            known += rotary(graph, decoder.rope, decoder.context_length)
        residual, skip = self._embedding(), ""
        if decoder.style.learned_positions:
            skip = self._positions()
        for index, block in enumerate(decoder.blocks):
            residual, skip = self._block(index, block, residual, skip, known)
        hidden, _ = self._norm("norm", residual, skip)
        self._head(self._wanted_rows(hidden))

    def _positions(self) -> str:
        """Rows of the position table for the newest tokens, [1, sequence, hidden]."""
        node, number = self.graph.node, self.graph.integers
        shape = node("Shape", ["input_ids"], "input.shape")
        count = node("Gather", [shape, number(1)], "input.count", axis=0)
        first = node("Sub", ["mask.total", count], "positions.first")
        rows = node("Range", [first, "mask.total", number(1)], "positions.rows")
        table = self._stored("positions.weight", self.decoder.load("positions.weight"))
        found = node("Gather", [table, rows], "positions.found", axis=0)
        return node("Unsqueeze", [self._widened(found, "positions.float32"), number([0])], "positions")

    def _block(self, index: int, block: Block, residual: str, skip: str, known: list[str]) -> tuple[str, str]:
        """One block; its residual stream before the MLP's output is added, and that output."""
        style, name = self.decoder.style, f"blocks.{index}"
        normed, residual = self._norm(f"{name}.attention_norm", residual, skip)
        attended = self._linear(name, ("attention_output",), self._attention(index, block, normed, known))
        if not style.parallel:
            normed, residual = self._norm(f"{name}.mlp_norm", residual, attended)
            return residual, self._mlp(name, normed)
        if style.mlp_norm:
            normed, _ = self._norm(f"{name}.mlp_norm", residual, "")
        return self.graph.node("Add", [residual, attended], f"{name}.attended"), self._mlp(name, normed)

    def _attention(self, index: int, block: Block, normed: str, known: list[str]) -> str:
        """The mixed values [batch, sequence, heads * head_dim]."""
        graph, decoder, name = self.graph, self.decoder, f"blocks.{index}"
        packed = [self._linear(name, ("query", "key", "value"), normed), "", ""]
        if decoder.style.head_norms:
            packed = self._head_norms(name, block, packed[0])
        cache = []
        for part in ("key", "value"):
            shape: list[int | str] = ["batch", block.kv_heads, "past", decoder.head_dim]
            cache.append(graph.input(f"past_key_values.{index}.{part}", "float32", shape))
            graph.output(f"present.{index}.{part}", "float32", [*shape[:2], "total", shape[3]])
        return graph.node(
            "com.microsoft.GroupQueryAttention",
            [*packed, *cache, *known],
            f"{name}.attention",
            f"present.{index}.key",
            f"present.{index}.value",
            num_heads=block.heads,
            kv_num_heads=block.kv_heads,
            do_rotary=int(decoder.rope is not None),
        )

    def _head_norms(self, name: str, block: Block, packed: str) -> list[str]:
        """Query and key, normed head by head, and value."""
        graph, dim = self.graph, self.decoder.head_dim
        heads = (block.heads, block.kv_heads, block.kv_heads)
        parts = [f"{name}.{part}.raw" for part in ("query", "key", "value")]
        sizes = graph.integers([count * dim for count in heads])
        graph.nodes("Split", [packed, sizes], parts, axis=-1)
        normed = []
        for raw, part, count in zip(parts, ("query", "key"), heads, strict=False):
            each = graph.node("Reshape", [raw, graph.integers([0, 0, count, dim])], f"{name}.{part}.heads")
            inputs, eps = [each, self._copied(f"{name}.{part}_norm.weight")], self.decoder.eps
            each = graph.node("RMSNormalization", inputs, f"{name}.{part}.normed", axis=-1, epsilon=eps)
            flat = graph.integers([0, 0, count * dim])
            normed.append(graph.node("Reshape", [each, flat], f"{name}.{part}.flat"))
        return [*normed, parts[2]]

    def _mlp(self, name: str, normed: str) -> str:
        graph, style = self.graph, self.decoder.style
        if style.gated:
            both = self._linear(name, ("gate", "up"), normed)
            gate, up = graph.nodes("Split", [both], [f"{name}.gate", f"{name}.up"], axis=-1, num_outputs=2)
            active = graph.node("com.microsoft.QuickGelu", [gate], f"{name}.silu", alpha=1.0)
            return self._linear(name, ("down",), graph.node("Mul", [active, up], f"{name}.gated"))
        up = self._linear(name, ("up",), normed)
        operator = {"relu": "Relu", "gelu": "com.microsoft.Gelu", "gelu_tanh": "com.microsoft.FastGelu"}
        return self._linear(name, ("down",), graph.node(operator[style.activation], [up], f"{name}.active"))

    def _norm(self, name: str, residual: str, skip: str) -> tuple[str, str]:
        """The norm of residual + skip, and that sum."""
        graph, rms, epsilon = self.graph, self.decoder.style.norm == "rms", self.decoder.eps
        weights = [self._copied(f"{name}.{kind}") for kind in self.decoder.style.norm_kinds]
        if not skip:
            operator = "RMSNormalization" if rms else "LayerNormalization"
            return graph.node(operator, [residual, *weights], name, axis=-1, epsilon=epsilon), residual
        kind = "SkipSimplifiedLayerNormalization" if rms else "SkipLayerNormalization"
        outputs = [name, "", "", f"{name}.residual"]
        graph.nodes(f"com.microsoft.{kind}", [residual, skip, *weights], outputs, epsilon=epsilon)
        return name, outputs[-1]

    def _linear(self, block: str, parts: tuple[str, ...], value: str) -> str:
        """The outputs of all `parts`, which read the same value, one after the other.

        One product makes them all; but one each, or two with its factors, where the checkpoint has factors.
        """
        decoder, name = self.decoder, f"{block}.{'_'.join(parts)}"
        names = [f"{block}.{part}" for part in parts]
        importance = self.imatrix.get(gguf_name(f"{names[0]}.weight"))
        if any(decoder.rank(f"{part}.weight") for part in names):
            outputs = [self._part(part, value, importance) for part in names]
            result = self.graph.node("Concat", outputs, name, axis=-1) if len(parts) > 1 else outputs[0]
        else:
            matrix = np.concatenate([decoder.load(f"{part}.weight") for part in names])
            known = [self.packed[f"{part}.weight"] for part in names if f"{part}.weight" in self.packed]
            whole = joined(known) if len(known) == len(names) else None
            result = self._product(name, matrix, value, self.precision.block_size, importance, whole)
        if f"{names[0]}.bias" not in decoder.shapes():
            return result
        bias = np.concatenate([decoder.load(f"{part}.bias") for part in names])
        return self.graph.node("Add", [result, self.graph.weight(f"{name}.bias", bias)], f"{name}.biased")

    def _part(self, name: str, value: str, importance: np.ndarray | None) -> str:
        """The output of one matrix, by way of its factors if it has some."""
        factors, size = self.decoder.factors(f"{name}.weight"), self.precision.block_size
        if factors is None:
            matrix = self.decoder.load(f"{name}.weight")
            known = self.packed.get(f"{name}.weight")
            return self._product(f"{name}.whole", matrix, value, size, importance, known)
        b, a = factors
        inner = self._product(f"{name}.a", a, value, size, importance, self.packed.get(f"{name}.a"))
        size = smallest_block(len(a), size, self.precision.bits)
        return self._product(f"{name}.b", b, inner, size, packed=self.packed.get(f"{name}.b"))

    def _product(
        self,
        name: str,
        matrix: np.ndarray,
        value: str,
        block: int,
        importance: np.ndarray | None = None,
        packed: Packed | None = None,
    ) -> str:
        """value @ matrix.T; `packed` are its integers where they are known."""
        precision, weight = self.precision, f"{name}.weight"
        if not precision.bits:
            stored = self._stored(weight, np.ascontiguousarray(matrix.T))
            return self.graph.node("MatMul", [value, self._widened(stored, f"{weight}.widened")], name)
        if packed is None:
            packed = quantize_matrix(matrix, precision.bits, block, precision.symmetric, importance)
        inputs = [value, *self._packed(name, packed)]
        return self._matmul_nbits(inputs, name, matrix.shape, precision.bits, block)

    def _matmul_nbits(
        self, inputs: list[str], output: str, shape: tuple[int, ...], bits: int, block: int
    ) -> str:
        return self.graph.node(
            "com.microsoft.MatMulNBits", inputs, output, N=shape[0], K=shape[1], bits=bits, block_size=block,
            accuracy_level=self.precision.accuracy_level,
        )  # fmt: skip

    def _embedding(self) -> str:
        """The rows of the embedding that input_ids name."""
        graph, precision, hidden = self.graph, self.precision, self.decoder.hidden_size
        matrix = self.decoder.load("embedding.weight")
        if not precision.bits:
            table = self._stored("embedding.weight", matrix)
            rows = graph.node("Gather", [table, "input_ids"], "embedding", axis=0)
            return self._widened(rows, "embedding.float32")
        packed = self._quantized("embedding", matrix)
        codes, *rest = self._packed("embedding", packed)
        table = graph.alias("embedding.rows", codes, (len(matrix), math.prod(packed.codes.shape[1:])))
        rows = graph.node(
            "com.microsoft.GatherBlockQuantized", [table, "input_ids", *rest], "embedding",
            bits=precision.head_bits, block_size=precision.head_block_size, gather_axis=0, quantize_axis=1,
        )  # fmt: skip
        if packed.scales.shape[1] * precision.head_block_size == hidden:
            return rows
        ends = [graph.integers([end]) for end in (0, hidden, -1)]
        return graph.node("Slice", [rows, *ends], "embedding.whole")

    def _head(self, hidden: str) -> None:
        decoder, precision, graph = self.decoder, self.precision, self.graph
        name = "embedding" if decoder.tied else "head"
        biased = "head.bias" in decoder.shapes()
        output = "unbiased" if biased else "logits"
        if precision.bits:
            if not decoder.tied:
                self._packed(name, self._quantized(name, decoder.load("head.weight")))
            kinds = ("codes", "scales") if precision.symmetric else ("codes", "scales", "zero_points")
            inputs = [hidden, *(f"{name}.{kind}" for kind in kinds)]
            shape, block = (decoder.vocab_size, decoder.hidden_size), precision.head_block_size
            self._matmul_nbits(inputs, output, shape, precision.head_bits, block)
        else:
            if not decoder.tied:
                self._stored("head.weight", decoder.load("head.weight"))
            weight = self._widened(f"{name}.weight", f"{name}.widened")
            graph.node("com.microsoft.FusedMatMul", [hidden, weight], output, transB=1)
        if biased:
            graph.node("Add", [output, self._copied("head.bias")], "logits")

    def _quantized(self, name: str, matrix: np.ndarray) -> Packed:
        """The embedding or the head as integers."""
        precision = self.precision
        importance = next((self.imatrix[n] for n in (HEAD, EMBEDDING) if n in self.imatrix), None)
        if name == "embedding" and not self.decoder.tied:
            importance = None  # nothing is multiplied with it
        bits, block = precision.head_bits, precision.head_block_size
        return quantize_matrix(matrix, bits, block, precision.symmetric, importance)

    def _packed(self, name: str, packed: Packed) -> list[str]:
        """Store a quantized matrix; the names of its codes, scales and zero points, if it has some."""
        stored = {"codes": packed.codes, "scales": packed.scales, "zero_points": packed.zero_points}
        return [self.graph.weight(f"{name}.{n}", array) for n, array in stored.items() if array is not None]

    def _wanted_rows(self, hidden: str) -> str:
        """The rows whose logits are wanted: from logits_start on, all by default.

        A prompt needs those of its last token alone. The input has a default, so that a program that does
        not know it gets all rows.
        """
        number = self.graph.integers
        start = self.graph.optional_input("logits_start", 0)
        return self.graph.node("Slice", [hidden, start, number([2**62]), number([1])], "hidden.wanted")

    def _copied(self, name: str) -> str:
        """A weight in float32, as norms and biases are in every precision."""
        return self.graph.weight(name, self.decoder.load(name))

    def _stored(self, name: str, array: np.ndarray) -> str:
        """A float matrix in the precision's own type."""
        if self.precision.name == "fp16":
            check_half(array, name, "export it as fp32")
            array = array.astype(np.float16)
        return self.graph.weight(name, array)

    def _widened(self, stored: str, name: str) -> str:
        """A float matrix, or rows of one, as float32 called `name`, which is what the graph computes in."""
        return self.graph.node("Cast", [stored], name, to=1) if self.precision.name == "fp16" else stored
