"""How large a figure is against the reference's, how sure that is, and whether it is better or worse."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Better = Literal["higher", "lower"]
Verdict = Literal["better", "worse", "noise", "same", "unknown"]

RULES = (
    "In brackets: a 95 % interval. For times and rates the rank (Mann-Whitney) interval of all ratios "
    "between the repetitions of both, for quality that of the paired differences per window or question.",
    "≈ is within noise: the interval holds 1, or times and memory differ by at most 1 %, energy and roofline "
    "by at most 5 %. A ? can't be told from so few samples.",
)
_Z95 = statistics.NormalDist().inv_cdf(0.975)
_FEWEST_PAIRS = 10


@dataclass(frozen=True)
class Ratio:
    """A figure divided by the reference's.

    `value` is None where they can't be divided, and `note` says why; `low` and `high` bound it where its
    spread is known.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    verdict: Verdict = "unknown"
    note: str | None = None


def sampled_ratio(
    reference: float,
    other: float,
    reference_samples: Sequence[float],
    other_samples: Sequence[float],
    better: Better,
    negligible: float,
) -> Ratio:
    """The ratio of two medians and the 95 % rank interval of the ratios of their positive samples."""
    if reference <= 0 or min(reference_samples, default=0) <= 0 or not other_samples:
        return Ratio(None, note="nothing was measured")
    value, n, m = other / reference, len(reference_samples), len(other_samples)
    # For every n and m up to 15 this rank covers 95 to 99 %, as counting all orders shows.
    rank = math.floor(n * m / 2 - _Z95 * math.sqrt(n * m * (n + m + 1) / 12))
    ratios = sorted(b / a for a in reference_samples for b in other_samples)
    if rank < 1:
        return Ratio(value, note=f"{n} and {m} samples are too few to tell")
    low, high = min(value, ratios[rank - 1]), max(value, ratios[-rank])
    return Ratio(value, low, high, _verdict(value, low, high, better, negligible))


def single_ratio(reference: float, other: float, better: Better, negligible: float) -> Ratio:
    """The ratio of two figures read once."""
    if reference <= 0:
        return Ratio(None, note="the reference's figure is 0")
    value = other / reference
    if value == 1:
        return Ratio(value, verdict="same")
    return Ratio(value, verdict=_verdict(value, value, value, better, negligible))


def paired_sums_ratio(reference: Sequence[float], other: Sequence[float]) -> Ratio:
    """The ratio of two sums over the same windows, lower is better, by the error of a linearised ratio."""
    total, count = sum(reference), len(reference)
    if total <= 0 or count != len(other):
        return Ratio(None, note="not scored on the same windows")
    value = sum(other) / total
    if list(reference) == list(other):
        return Ratio(value, value, value, "same")
    if count < 2:
        return Ratio(value, note="one window is too few to tell")
    squares = sum((b - value * a) ** 2 for a, b in zip(reference, other, strict=True))
    spread = _Z95 * math.sqrt(squares * count / (count - 1)) / total
    return _paired(value, spread, "lower", count, "windows")


def paired_answers_ratio(
    reference: float, other: float, reference_answers: Sequence[int], other_answers: Sequence[int]
) -> Ratio:
    """The ratio of two accuracies on the same questions.

    Which answers are right is not in a report. The difference of two paired counts varies with how many
    questions only one side got right, and those are at most the questions answered differently.
    """
    count = len(reference_answers)
    if count == 0 or count != len(other_answers):
        return Ratio(None, note="not the same questions")
    if reference <= 0:
        return Ratio(None, note="the reference answered none right")
    value = other / reference
    changed = sum(a != b for a, b in zip(reference_answers, other_answers, strict=True))
    if changed == 0:
        return Ratio(value, value, value, "same")
    won = (other - reference) * count
    spread = _Z95 * math.sqrt(max(changed - won**2 / count, 0)) / count / reference
    return _paired(value, spread, "higher", count, "questions")


def _paired(value: float, spread: float, better: Better, count: int, what: str) -> Ratio:
    low, high = max(value - spread, 0.0), value + spread
    if count < _FEWEST_PAIRS:
        return Ratio(value, low, high, note=f"{count} {what} are too few to tell")
    return Ratio(value, low, high, _verdict(value, low, high, better, 0.0))


def _verdict(value: float, low: float, high: float, better: Better, negligible: float) -> Verdict:
    if low <= 1 <= high or abs(value - 1) <= negligible:
        return "noise"
    return "better" if (value > 1) == (better == "higher") else "worse"


def ratio_text(ratio: Ratio) -> str:
    """Like "0.93 ×", with the digits that its interval (or its distance from 1) needs; "–" without."""
    return "–" if ratio.value is None else f"{ratio.value:.{_digits(ratio)}f} ×"


def interval_text(ratio: Ratio) -> str:
    """Like "0.91–0.95"; "" where the spread is not known or nothing varied."""
    if ratio.low is None or ratio.high is None or ratio.low == ratio.high:
        return ""
    return f"{ratio.low:.{_digits(ratio)}f}–{ratio.high:.{_digits(ratio)}f}"


def _digits(ratio: Ratio) -> int:
    finest = ((ratio.high or 0) - (ratio.low or 0)) / 2 or abs((ratio.value or 1) - 1)
    return min(max(1 if finest >= 1 else 2, math.ceil(-math.log10(2 * finest))), 4) if finest else 2


def full_text(ratio: Ratio) -> str:
    """Like "0.93 × (0.91–0.95)"."""
    interval = interval_text(ratio)
    return f"{ratio_text(ratio)} ({interval})" if interval else ratio_text(ratio)


VERDICTS = {"better": "better", "worse": "worse", "noise": "≈", "same": "same", "unknown": "?"}


def verdict_text(ratio: Ratio) -> str:
    """The verdict as a word or sign; "" where there is no ratio to judge."""
    return "" if ratio.value is None else VERDICTS[ratio.verdict]
