#!/usr/bin/env bash
# Expected: weights that were trained on Q4_0's own grid (quantization-aware training: each is one of -8 … 7 times its block's float16
#   scale) come out of ggml's quantizer as they went in. They can be stored exactly.
# What happens: without an importance matrix the quantizer takes the largest weight of a block for level -8. Where training put it on another
#   level, as with the usual symmetric scale (largest magnitude ÷ 7), the scale changes and nearly all weights of the block move:
#   every block of a model with levels -7 … 7, three quarters of those with -8 … 7, and the error is three quarters and more of what the first
#   rounding made. The model is rounded twice. With *any* importance matrix, all ones too, scales are searched and every
#   weight is kept. gguf's own quantizer, which has no importance matrix, moves them as well.
#   So a model that was trained for Q4_0 wants an importance matrix when it is converted, if only of ones.
#   Source: ggml-quants.c, quantize_row_q4_0_ref takes max / -8 for the scale, quantize_row_q4_0_impl, with weights, searches it.
#   (ggml-python 0.0.45, which carries ggml; gguf 0.19.0; numpy 2.4.6; Linux x86-64)
set -euo pipefail
place=$(mktemp -d) && trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet 'ggml-python==0.0.45' 'gguf==0.19.0' 'numpy==2.4.6'
cd "$place"
venv/bin/python - <<'PYTHON'
import ctypes
from importlib.metadata import version

import ggml
import numpy as np
from gguf import GGMLQuantizationType, quants

print(*(f"{name} {version(name)}" for name in ("ggml-python", "gguf", "numpy")))
Q4_0, BLOCK = GGMLQuantizationType.Q4_0, 32
floats = np.random.default_rng(0).normal(0, 0.05, (256, 1024)).astype(np.float32)


def pointer(array):
    return array.ctypes.data_as(ctypes.POINTER(ctypes.c_float))


def by_ggml(weights, importance):
    out = np.zeros(weights.size // BLOCK * 18, np.uint8)
    rows, columns = weights.shape
    known = None if importance is None else pointer(importance)
    ggml.ggml_quantize_chunk(
        ggml.GGML_TYPE_Q4_0, pointer(weights), out.ctypes.data_as(ctypes.c_void_p), 0, rows, columns, known
    )
    return quants.dequantize(out.reshape(rows, -1), Q4_0)


def trained(lowest, span):
    """The weights on a grid of levels from `lowest` to 7, the largest of a block at `span`."""
    blocks = floats.reshape(-1, BLOCK)
    scales = (np.abs(blocks).max(1) / span).astype(np.float16).astype(np.float32)[:, None]
    return (np.clip(np.rint(blocks / scales), lowest, 7) * scales).reshape(floats.shape)


found = {}
for name, lowest, span in (("-7 … 7", -7, 7), ("-8 … 7", -8, 7.5)):
    weights = trained(lowest, span)
    first = np.sqrt(np.mean((weights - floats) ** 2))
    for how, stored in {
        "ggml": by_ggml(weights, None),
        "gguf": quants.dequantize(quants.quantize(weights, Q4_0), Q4_0),
        "ggml, importance of ones": by_ggml(weights, np.ones(weights.shape[1], np.float32)),
    }.items():
        moved = float(np.mean((stored != weights).reshape(-1, BLOCK).any(1)))
        again = float(np.sqrt(np.mean((stored - weights) ** 2)) / first)
        found[name, how] = moved, again
        print(f"levels {name}, {how}: {moved:.1%} of the blocks changed; error of that ÷ of the first rounding {again:.2f}")

for (name, how), (moved, again) in found.items():
    if "ones" in how:
        assert moved == 0
    else:
        assert moved > (0.99 if "-7" in name else 0.6) and again > 0.6
print("Q4_0 without an importance matrix rounds a model again that lies on its grid; with one of ones it keeps it.")
PYTHON
