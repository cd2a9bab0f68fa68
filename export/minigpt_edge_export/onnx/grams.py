"""Gram matrices of what every matrix of a decoder reads on calibration text, by its float32 ONNX graph."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx

from minigpt_edge_export.decoder import Decoder
from minigpt_edge_export.onnx.write import MODEL, write_onnx
from minigpt_edge_export.targets import Precision
from minigpt_edge_runtime.engines.onnx import open_session


def memory(decoder: Decoder) -> int:
    """Bytes that `collect_grams` takes for the weights in float32 and the matrices."""
    grams = 0
    for block in decoder.blocks:
        attention = block.heads * decoder.head_dim
        grams += 2 * decoder.hidden_size**2 + attention**2 + block.intermediate_size**2
    return 4 * (decoder.parameters + grams)


def collect_grams(
    decoder: Decoder,
    sequences: Sequence[Sequence[int]],
    folder: Path,
    threads: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, np.ndarray]:
    """Run token sequences, each on its own.

    Args:
        folder: where the float32 graph lies meanwhile.
        on_progress: sequences done, sequences in all.

    Returns:
        name of a value in the graph -> float32 [K, K], mean outer product; one per value that blocks'
        matrices multiply ("blocks.3.mlp_norm", …).

    Raises:
        EdgeError: no space is left.
    """
    directory = folder / "grams"
    write_onnx(decoder, directory, Precision("fp32"))
    try:
        wanted = _watch_products(directory / MODEL)
        session = open_session(directory / MODEL, threads)
        empty = {
            value.name: np.zeros((1, value.shape[1], 0, value.shape[3]), dtype=np.float32)
            for value in session.get_inputs()
            if value.name.startswith("past_key_values.")
        }
        sums: dict[str, np.ndarray] = {}
        for done, tokens in enumerate(sequences):
            on_progress(done, len(sequences))
            ids = np.array([tokens], dtype=np.int64)
            found = session.run(wanted, {"input_ids": ids, "attention_mask": np.ones_like(ids), **empty})
            for name, (values,) in zip(wanted, found, strict=True):
                gram = values.T @ values
                sums[name] = sums[name] + gram if name in sums else gram
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    count = sum(map(len, sequences))
    return {name: total / np.float32(count) for name, total in sums.items()}


def _watch_products(path: Path) -> list[str]:
    """Make what MatMul nodes read an output of the graph; the names."""
    model = onnx.load(path, load_external_data=False)
    wanted = list(dict.fromkeys(node.input[0] for node in model.graph.node if node.op_type == "MatMul"))
    for name in wanted:
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    path.write_bytes(model.SerializeToString())
    return wanted
