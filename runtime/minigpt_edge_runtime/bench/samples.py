"""Raw samples and what is said of them, under llama-bench's field names."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any


def nanoseconds(samples: Sequence[int]) -> dict[str, Any]:
    """The samples with their mean and standard deviation (0 of one sample, as in llama-bench)."""
    return {
        "samples_ns": list(samples),
        "avg_ns": round(statistics.fmean(samples)),
        "stddev_ns": _spread(samples),
    }


def entry(n_prompt: int, n_gen: int, n_depth: int, samples: Sequence[int]) -> dict[str, Any]:
    """One test: its tokens, its samples, and the tokens per second of each."""
    rates = [round((n_prompt + n_gen) * 1e9 / sample, 4) for sample in samples]
    return {
        "n_prompt": n_prompt,
        "n_gen": n_gen,
        "n_depth": n_depth,
        **nanoseconds(samples),
        "samples_ts": rates,
        "avg_ts": round(statistics.fmean(rates), 4),
        "stddev_ts": round(statistics.stdev(rates), 4) if len(rates) > 1 else 0.0,
    }


def milliseconds(samples_ns: Sequence[int]) -> dict[str, float]:
    """mean, p50, p90 and p99 in milliseconds; percentiles are interpolated linearly."""
    values = [sample / 1e6 for sample in samples_ns]
    cuts = statistics.quantiles(values * 2 if len(values) == 1 else values, n=100, method="inclusive")
    return {
        "mean": round(statistics.fmean(values), 4),
        **{f"p{q}": round(cuts[q - 1], 4) for q in (50, 90, 99)},
    }


def _spread(samples: Sequence[int]) -> int:
    return round(statistics.stdev(samples)) if len(samples) > 1 else 0
