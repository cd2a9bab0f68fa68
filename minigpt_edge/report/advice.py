"""Warnings of a build whose file is worse than the dense model as published, and what would mend it.

What would is estimated from the build's own figures by two simple laws, see docs/decisions.md.
"""

from __future__ import annotations

import math

from minigpt_edge.report.build_report import BuildReport, ModelFile, QualityWarning
from minigpt_edge.report.tables import paired_difference

SURE = 2.0  # standard errors from which a difference is more than chance
TIMES = {"30m": 1800, "1h": 3600, "2h": 7200, "4h": 14400, "8h": 28800, "24h": 86400}  # seconds
EPOCHS = 4  # A text that is read more often teaches less each time (arXiv 2305.16264).
LEFT = 0.65  # of the loss that pruning cost, after recovery
POWER = 2.0  # of the sparsity, by which that cost grows
STEP = 0.05  # of the sparsities that are named


def quality_warnings(report: BuildReport) -> tuple[QualityWarning, ...]:
    """One for each shipped file that scored worse than the dense F16 model, where both were scored."""
    _, dense, _ = report.compared()
    made = (_warning(report, model, dense) for model in report.by_role("shipped"))
    return tuple(warning for warning in made if warning)


def _warning(report: BuildReport, model: ModelFile, dense: ModelFile) -> QualityWarning | None:
    bits, before = model.quality.bits_per_byte, dense.quality.bits_per_byte
    if bits is None or before is None or bits <= before:
        return None
    pair = paired_difference(model.quality.per_window, dense.quality.per_window)
    difference, stderr = pair or (bits - before, None)
    tokens = tokens_to_gain(report, difference)
    warning = QualityWarning(
        label=model.label,
        difference=difference,
        stderr=stderr,
        sure=stderr is None or difference > SURE * stderr,
        tokens=tokens,
        time=time_for(report, tokens) if tokens else None,
        sparsity=sparsity_to_gain(report, difference),
    )
    return warning.model_copy(update={"text": _text(report, warning)})


def tokens_to_gain(report: BuildReport, bits: float) -> int | None:
    """How many tokens of recovery in all would make a model `bits` bits per byte better than it is.

    The loss at the end of recovery is taken to fall with the logarithm of its tokens, as fast as from the
    first evaluation to the last.

    Returns:
        None without recovery, if it stopped early or learned nothing between its evaluations, or if the text
        would be read more than EPOCHS times.
    """
    recovery, most = report.recovery, report.corpus.train_tokens
    points = [
        (s.tokens, s.bits_per_byte) for s in recovery.history if s.tokens and s.bits_per_byte is not None
    ]
    if len(points) < 2 or recovery.stopped not in (None, "tokens"):
        return None
    (first, start), (last, end) = points[0], points[-1]
    slope = (start - end) / math.log(last / first)
    bits += end - min(scored for _, scored in points)  # The model is that of the best evaluation.
    if slope <= 0 or bits / slope > math.log(1000):
        return None
    tokens = round(last * math.exp(bits / slope))
    return None if most is not None and tokens > EPOCHS * most else tokens


def time_for(report: BuildReport, tokens: int) -> str | None:
    """The shortest of TIMES for such a build with so many tokens of recovery; None if all are too short."""
    rate, done = report.recovery.tokens_per_second, report.recovery.tokens
    if not rate or done is None:
        return None
    seconds = sum(stage.seconds or 0 for stage in report.stages) + max(0, tokens - done) / rate
    return next((name for name, most in TIMES.items() if seconds <= most), None)


def sparsity_to_gain(report: BuildReport, bits: float) -> float | None:
    """The highest sparsity, a multiple of STEP, where the model would be `bits` bits per byte better.

    What pruning costs is taken to grow with the square of the sparsity, and recovery to leave LEFT of it.

    Returns:
        None where even the least would not do, or nothing was removed.
    """
    found, stations = report.sparsity, report.quality_torch
    dense, pruned = stations.dense.bits_per_byte, stations.pruned.bits_per_byte
    if not found.achieved or found.pattern not in ("structured", "blocks") or dense is None or pruned is None:
        return None
    left = (pruned - dense) * (LEFT if report.recovery else 1.0)
    if left <= bits:
        return None
    highest = found.achieved * (1 - bits / left) ** (1 / POWER)
    steps = math.floor(highest / STEP + 1e-9)
    return round(steps * STEP, 2) if steps else None


def _text(report: BuildReport, warning: QualityWarning) -> str:
    """The warning in plain words."""
    error = "" if warning.stderr is None else f" ± {warning.stderr:.3f}"
    more = f"{warning.difference:.3f}{error} bits per byte more on held-out text"
    if warning.sure:
        text = f"{warning.label} is worse than the dense model as published: {more}."
    else:
        text = f"{warning.label} can't be told from the dense model as published: {more} may be chance."
    ways = []
    if not report.recovery:
        ways.append("recovery (no --no-recover)")
    if warning.time and warning.tokens:
        ways.append(f"--time {warning.time} (about {round(warning.tokens, -4):,} tokens of recovery)")
    if warning.sparsity:
        ways.append(f"--sparsity {warning.sparsity:g}{_in_place_of(report)}")
    if not ways:
        return f"{text} This build's curves name neither a --time nor a --sparsity that would mend it."
    return f"{text} {' or '.join(ways)} would mend it: an estimate from this build's curves."


def _in_place_of(report: BuildReport) -> str:
    """What a sparsity would have to replace."""
    limits = [f"--{name.replace('_', '-')}" for name in report.sparsity.limits]
    return f" in place of {' and '.join(limits)}" if limits else ""
