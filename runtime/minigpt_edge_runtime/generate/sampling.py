"""How the next token is picked from an engine's logits."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import numpy as np

from minigpt_edge_runtime.errors import EdgeError, UsageError


@dataclass(frozen=True)
class Sampling:
    """The settings of a `Sampler`.

    `temperature` 0 is greedy. `top_k` 0, `top_p` 1, `min_p` 0 and `repeat_penalty` 1 switch themselves off.

    Raises:
        UsageError: a setting is outside its range.
    """

    temperature: float = 0.7
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.1
    repeat_last: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        rules = [
            ("temperature", 0 <= self.temperature < math.inf, "0 or more"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "between 0 and 1"),
            ("repeat_penalty", 0 < self.repeat_penalty < math.inf, "above 0"),
            ("repeat_last", self.repeat_last >= 0, "0 or more"),
            ("seed", self.seed >= 0, "0 or more"),
        ]
        for name, good, allowed in rules:
            if not good:
                raise UsageError(f"{name} is {getattr(self, name)}, it must be {allowed}")


class Sampler:
    """Picks tokens and remembers them for the repetition penalty.

    The filters are llama.cpp's in llama.cpp's order: penalty, top_k, top_p, min_p, temperature, draw. One
    sampler serves every engine, so that the same logits and seed give the same text whatever the format.
    """

    def __init__(self, sampling: Sampling) -> None:
        self._settings = sampling
        self._recent: deque[int] = deque(maxlen=sampling.repeat_last)
        self._random = np.random.Generator(np.random.PCG64(sampling.seed))

    def accept(self, token: int) -> None:
        """Remember a token of the text so far."""
        self._recent.append(token)

    def sample(self, logits: np.ndarray) -> int:
        """The next token, not yet accepted, from logits: float32 [vocab].

        Raises:
            EdgeError: a logit is not a number.
        """
        if self._settings.temperature == 0:
            return int(_checked(self._penalized(logits)).argmax())
        ids, probabilities = self.candidates(logits)
        steps = np.cumsum(probabilities)
        drawn = np.searchsorted(steps, self._random.random() * steps[-1], side="right")
        return int(ids[min(drawn, len(ids) - 1)])

    def candidates(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What is drawn from, likeliest first.

        Returns:
            token ids and their probabilities, float64.

        Raises:
            EdgeError: a logit is not a number.
        """
        settings = self._settings
        logits = _checked(self._penalized(logits))
        count = settings.top_k or len(logits)
        ids = _largest(logits, count) if count < len(logits) else np.arange(len(logits))
        top = logits.max()
        weights = np.exp((logits[ids] - top).astype(np.float64))
        total = weights.sum()
        # Both filters keep the likeliest, so the cheap one can go first: fewer tokens to sort.
        kept = weights >= settings.min_p
        ids, weights = ids[kept], weights[kept]
        order = np.argsort(-weights, kind="stable")
        ids, weights = ids[order], weights[order]
        if settings.top_p < 1:
            ids = ids[: np.searchsorted(np.cumsum(weights) / total, settings.top_p) + 1]
        scaled = (logits[ids].astype(np.float64) - top) / settings.temperature
        probabilities = np.exp(scaled)
        return ids, probabilities / probabilities.sum()

    def _penalized(self, logits: np.ndarray) -> np.ndarray:
        penalty = self._settings.repeat_penalty
        if penalty == 1 or not self._recent:
            return logits
        ids = np.array(list(set(self._recent)))
        logits = logits.copy()
        found = logits[ids]
        logits[ids] = np.where(found > 0, found / penalty, found * penalty)
        return logits


def _largest(logits: np.ndarray, count: int) -> np.ndarray:
    """Ids of the `count` largest logits; of equals the smaller ids, on every platform.

    The largest of every strip of the vocabulary give a bound that the wanted ones reach, so that only a few
    need sorting: ten times quicker than a partition of the whole where numpy has no AVX-512 for it.
    """
    strip = max(1, len(logits) // (16 * count))
    heads = logits[: len(logits) // strip * strip].reshape(strip, -1).max(axis=0)
    candidates = np.flatnonzero(logits >= np.partition(heads, -count)[-count])
    return candidates[np.argsort(-logits[candidates], kind="stable")[:count]]


def _checked(logits: np.ndarray) -> np.ndarray:
    if not np.isfinite(logits.max()):
        raise EdgeError("the model computes values that are not numbers", "export the model again")
    return logits
