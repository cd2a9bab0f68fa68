"""--fail-if: limits on ratios, for continuous integration."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minigpt_edge_runtime.errors import UsageError

if TYPE_CHECKING:
    from minigpt_edge_runtime.compare.comparison import Comparison

METRICS = {
    "decode": "tokens/s at the smallest depth in common",
    "prefill": "tokens/s at the longest prompt in common",
    "ttft": "time to the first token at the shortest prompt in common",
    "itl": "median time between tokens",
    "load": "load time",
    "memory": "peak memory",
    "size": "file size",
    "bits_per_byte": "on the same held-out text",
    "accuracy": "multiple choice on the same questions",
}


@dataclass(frozen=True)
class Limit:
    """A ratio below (or above) `bound` is a failure."""

    text: str
    metric: str
    below: bool
    bound: float

    def broken_by(self, ratio: float) -> bool:
        return ratio < self.bound if self.below else ratio > self.bound


def parse_limit(text: str) -> Limit:
    """Read an expression like "decode<0.95".

    Raises:
        UsageError: it is none, or its metric does not exist.
    """
    known = f"metrics: {', '.join(METRICS)}"
    match = re.fullmatch(r"\s*([A-Za-z_]+)\s*([<>])\s*(\d+\.?\d*|\.\d+)\s*", text, re.ASCII)
    if match is None:
        raise UsageError(f"--fail-if {text!r} can't be read", f"write it like 'decode<0.95'; {known}")
    metric, sign, number = match.groups()
    if metric not in METRICS:
        raise UsageError(f"--fail-if {text!r}: there is no metric {metric!r}", known)
    return Limit(f"{metric}{sign}{number}", metric, sign == "<", float(number))


def broken(comparison: Comparison, limits: Sequence[Limit]) -> list[str]:
    """A line for every report and limit that fails; a ratio that is missing fails too."""
    from minigpt_edge_runtime.compare.ratio import full_text

    lines = []
    reference, *others = comparison.reports
    for limit in limits:
        row = next((row for row in comparison.rows if row.metric.limit == limit.metric), None)
        for number, report in enumerate(others):
            ratio = row.ratios[number] if row else None
            if ratio is None or ratio.value is None:
                why = ratio.note if ratio else "no report has it, or not at a length in common"
                lines.append(
                    f"{report.label}: {limit.metric} can't be compared with {reference.label}'s ({why})"
                )
            elif limit.broken_by(ratio.value):
                lines.append(
                    f"{report.label}: {limit.metric} is {full_text(ratio)} {reference.label}'s, "
                    f"which {limit.text} forbids"
                )
    return lines
