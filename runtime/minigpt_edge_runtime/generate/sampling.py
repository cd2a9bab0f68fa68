"""How the next token is picked from an engine's logits."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from minigpt_edge_runtime.errors import EdgeError, UsageError


@dataclass(frozen=True)
class Sampling:
    """The settings of a `Sampler`.

    `temperature` 0 is greedy. `top_k` 0, `top_p` 1, `min_p` 0, `repeat_penalty` 1 and the other penalties' 0
    switch themselves off. `frequency_penalty` and `presence_penalty` are OpenAI's: they count the answer's
    tokens, not the prompt's. `logit_bias` is added to the logits of the tokens it names.

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
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rules = [
            ("temperature", 0 <= self.temperature < math.inf, "0 or more"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "between 0 and 1"),
            ("repeat_penalty", 0 < self.repeat_penalty < math.inf, "above 0"),
            ("repeat_last", 0 <= self.repeat_last <= 2**31, "0 to 2**31"),
            ("seed", self.seed >= 0, "0 or more"),
            ("frequency_penalty", -2 <= self.frequency_penalty <= 2, "between -2 and 2"),
            ("presence_penalty", -2 <= self.presence_penalty <= 2, "between -2 and 2"),
            ("logit_bias", all(-100 <= bias <= 100 for bias in self.logit_bias.values()), "-100 to 100 each"),
        ]
        for name, good, allowed in rules:
            if not good:
                raise UsageError(f"{name} is {getattr(self, name)}, it must be {allowed}")


class Sampler:
    """Picks tokens and remembers them for the penalties.

    The steps are llama.cpp's in llama.cpp's order: bias, penalties, top_k, top_p, min_p, temperature, draw.
    One sampler serves every engine, so that the same logits and seed give the same text whatever the format.
    """

    def __init__(self, sampling: Sampling) -> None:
        self._settings = sampling
        self._recent: deque[int] = deque(maxlen=sampling.repeat_last)
        self._random = np.random.Generator(np.random.PCG64(sampling.seed))
        self._said: Counter[int] = Counter()
        self._counts = bool(sampling.frequency_penalty or sampling.presence_penalty)
        self._bias = (np.array([*sampling.logit_bias], dtype=np.intp), [*sampling.logit_bias.values()])

    def read(self, prompt: Sequence[int]) -> None:
        """Remember the text before the answer."""
        self._recent.extend(prompt)

    def accept(self, token: int) -> None:
        """Remember a token of the answer so far."""
        self._recent.append(token)
        if self._counts:
            self._said[token] += 1

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
        # A draw that is rounded up to the total must not take a token of probability 0 from the end.
        return int(ids[min(drawn, np.searchsorted(steps, steps[-1]))])

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
        ids = largest(logits, count) if count < len(logits) else np.arange(len(logits))
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
        settings = self._settings
        biased, repeats = len(self._bias[0]) > 0, settings.repeat_penalty != 1 and bool(self._recent)
        if not (biased or repeats or self._said):
            return logits
        logits = logits.copy()
        if biased:
            logits[self._bias[0]] += np.array(self._bias[1], dtype=np.float32)
        if repeats:
            ids = np.array(list(set(self._recent)))
            found, penalty = logits[ids], settings.repeat_penalty
            logits[ids] = np.where(found > 0, found / penalty, found * penalty)
        if self._said:
            ids = np.fromiter(self._said, dtype=np.intp)
            counts = np.fromiter(self._said.values(), dtype=np.float32)
            logits[ids] -= counts * settings.frequency_penalty + settings.presence_penalty
        return logits


def largest(logits: np.ndarray, count: int) -> np.ndarray:
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
