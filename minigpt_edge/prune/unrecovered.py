"""How much of what a cut is estimated to cost is left when recovery is over, for each kind of unit."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shares:
    """Rise of the held-out loss that is left ÷ the rise that was estimated before recovery."""

    tokens: float
    neurons: float
    groups: float

    def of(self, estimated: dict[str, float]) -> dict[str, float]:
        """What is left of the estimated rises of each kind."""
        return {kind: getattr(self, kind) * value for kind, value in estimated.items()}


# Provisional, to be replaced by benchmarks/experiments/recovered_shares.py; the rise is over the dense model
# fine-tuned on the same tokens.
AFTER_RECOVERY = Shares(tokens=0.15, neurons=0.5, groups=0.7)
# KV groups cost about twice their estimate: docs/decisions.md, 9.
WITHOUT_RECOVERY = Shares(tokens=1.0, neurons=1.0, groups=2.0)
