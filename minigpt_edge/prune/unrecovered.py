"""How much of what a cut is estimated to cost is measured on held-out text, with recovery and without it.

Tokens and groups: geometric means of two domains, benchmarks/results/recovered_shares-*.json
(docs/decisions.md 54). Neurons: between what is best in those domains at the default's calibration (56),
scaled to estimates that weigh tokens (63).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shares:
    """Rise of the held-out loss that is measured ÷ the rise that was estimated on the training text."""

    tokens: float
    neurons: float
    groups: float

    def of(self, estimated: dict[str, float]) -> dict[str, float]:
        """What is left of the estimated rises of each kind."""
        return {kind: getattr(self, kind) * value for kind, value in estimated.items()}


# Over the dense model that was fine-tuned on the same tokens, and over the dense model as published.
AFTER_RECOVERY = Shares(tokens=0.5, neurons=0.95, groups=2.0)
WITHOUT_RECOVERY = Shares(tokens=0.6, neurons=0.95, groups=2.4)
