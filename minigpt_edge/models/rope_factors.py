"""The scaling of rotary positions that a GGUF file's `rope_freqs.weight` was computed with.

llama.cpp's converter stores what llama3 scaling divides each frequency by, not its parameters: 1 for short
waves, `factor` for long ones, and between them a share `old / (high - low) / wavelength - low / (high - low)`
of the step from the one to the other, in terms of 1 / value. Only ratios of `old`, `low` and `high` matter,
so `low` is 1 as everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from minigpt_edge_export.decoder import llama3_factors

_ERROR = 1e-5  # relative: converters compute the factors in float32


def rope_parameters(factors: np.ndarray, theta: float) -> dict[str, Any] | None:
    """transformers' `rope_parameters` that give these factors, float32 [rotated values / 2], or None.

    They are tried: what is returned gives every stored factor within the error of float32.
    """
    stored = np.asarray(factors, np.float64)
    if not (np.isfinite(stored).all() and (stored >= 1 - _ERROR).all()):
        return None
    if np.allclose(stored, stored[0], rtol=_ERROR):
        factor = _neat(float(stored.mean()))
        kind = {"rope_type": "default"} if factor == 1 else {"rope_type": "linear", "factor": factor}
        return {"rope_theta": theta, **kind}
    for factor in (_neat(float(stored[-1])), float(stored[-1])):
        for high, old in _candidates(stored, theta, factor):
            given = {
                "rope_type": "llama3",
                "rope_theta": theta,
                "factor": factor,
                "low_freq_factor": 1.0,
                "high_freq_factor": high,
                "original_max_position_embeddings": old,
            }
            if np.allclose(llama3_factors(theta, 2 * len(stored), given), stored, rtol=_ERROR):
                return given
    return None


def _candidates(stored: np.ndarray, theta: float, factor: float) -> Iterator[tuple[float, int | float]]:
    """(high_freq_factor, original_max_position_embeddings) to try, the likeliest first."""
    count = len(stored)
    waves = 2 * math.pi * theta ** (np.arange(count) / count)
    smooth = (1 / stored - 1 / factor) / (1 - 1 / factor)
    between = np.flatnonzero((smooth > _ERROR) & (smooth < 1 - _ERROR))
    if len(between) > 1:
        slope, offset = np.polyfit(1 / waves[between], smooth[between], 1)
        solved = [(1 - 1 / offset, -slope / offset)] if offset < 0 < slope else []
    elif len(between):  # the usual 4, else what lets the neighbours be whole and untouched
        wave, share = waves[between[0]], smooth[between[0]]
        solved = [(high, wave * (1 + share * (high - 1))) for high in (4.0, 2.0, 8.0, 16.0, 1.25)]
    else:
        last = int(np.flatnonzero(smooth > 0.5)[-1])
        ratio = waves[last + 1] / waves[last]
        solved = [(4.0, waves[last] * 4 * (ratio / 4) ** 0.5), (ratio**0.5, waves[last] * ratio**0.75)]
    for high, old in solved:
        yield from (
            (_neat(high), size) for size in (8192, 2 ** round(math.log2(old)), round(old), old) if high > 1
        )
        yield high, old


def _neat(value: float) -> float:
    """The value without float32's rounding."""
    return float(f"{value:.4g}")
