"""What the tests of the ONNX files compute by other means."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
from tiny_llama import Checkpoint

from minigpt_edge_export.decoder import read_checkpoint
from minigpt_edge_export.onnx.weights import Packed, quantize_matrix
from minigpt_edge_export.onnx.write import write_onnx
from minigpt_edge_export.targets import PRECISIONS, Precision

LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
}  # fmt: skip


def dequantize(packed: Packed, bits: int, columns: int) -> np.ndarray:
    """The matrix [N, columns] that the codes stand for, by the operator's documentation."""
    codes = nibbles(packed.codes) if bits == 4 else packed.codes
    zeros = np.full(packed.scales.shape, 2 ** (bits - 1))
    if packed.zero_points is not None:
        found = nibbles(packed.zero_points) if bits == 4 else packed.zero_points
        zeros = found[:, : zeros.shape[1]]
    values = (codes.astype(np.float64) - zeros[..., None]) * packed.scales[..., None]
    return values.reshape(len(values), -1)[:, :columns]


def nibbles(data: np.ndarray) -> np.ndarray:
    """The low and the high half of every byte, one after the other, along the last axis."""
    return np.stack([data & 15, data >> 4], axis=-1).reshape(*data.shape[:-1], -1)


def twin(checkpoint: Checkpoint, precision: Precision) -> Checkpoint:
    """The torch model with every matrix quantized and brought back."""
    import torch

    model = copy.deepcopy(checkpoint.model)
    for name, weight in model.named_parameters():
        if weight.ndim == 2:
            head = "embed" in name or "lm_head" in name
            bits, size = (
                (precision.head_bits, precision.head_block_size)
                if head
                else (precision.bits, precision.block_size)
            )
            packed = quantize_matrix(weight.detach().numpy(), bits, size, precision.symmetric)
            with torch.no_grad():
                weight.copy_(torch.from_numpy(dequantize(packed, bits, weight.shape[1])))
    return Checkpoint(checkpoint.path, model)


def plain_session(model: Path) -> Any:
    """onnxruntime as any program would use it."""
    import onnxruntime

    return onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])


def empty_cache(session: Any, batch: int = 1) -> dict[str, np.ndarray]:
    """A past of no tokens."""
    return {
        value.name: np.zeros((batch, value.shape[1], 0, value.shape[3]), np.float32)
        for value in session.get_inputs()
        if value.name.startswith("past_key_values.")
    }


def step(
    session: Any, tokens: np.ndarray, cache: dict[str, np.ndarray], **more: Any
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Logits of tokens [batch, n], and the cache with them."""
    past = next(iter(cache.values())).shape[2]
    mask = np.ones((len(tokens), past + tokens.shape[1]), np.int64)
    results = session.run(None, {"input_ids": tokens, "attention_mask": mask, **cache, **more})
    found = dict(zip((value.name for value in session.get_outputs()), results, strict=True))
    logits = found.pop("logits")
    return logits, {name.replace("present.", "past_key_values."): value for name, value in found.items()}


def exported(checkpoint: Checkpoint, folder: Path, precision: Precision | str, **options: Any) -> Path:
    """The model.onnx of a new directory."""
    chosen = PRECISIONS[precision] if isinstance(precision, str) else precision
    write_onnx(read_checkpoint(checkpoint.path), folder, chosen, **options)
    return folder / "model.onnx"


def grams_of(checkpoint: Checkpoint, rows: list[list[int]]) -> dict[str, np.ndarray]:
    """Mean outer products of what each matrix of the blocks reads: canonical name -> float32 [K, K]."""
    import torch

    decoder = read_checkpoint(checkpoint.path)
    found: dict[str, np.ndarray] = {}

    def watch(name: str) -> Any:
        def hook(_module: object, inputs: tuple[torch.Tensor, ...]) -> None:
            values = inputs[0].detach().flatten(0, -2).numpy()
            found[name] = values.T @ values / np.float32(len(values))

        module = checkpoint.model.get_submodule(decoder.source_name(name).removesuffix(".weight"))
        return module.register_forward_pre_hook(hook)

    matrices = [n for n, shape in decoder.shapes().items() if n.startswith("blocks.") and len(shape) == 2]
    handles = [watch(name) for name in matrices]
    with torch.inference_mode():
        checkpoint.model(torch.tensor(rows))
    for handle in handles:
        handle.remove()
    return found
