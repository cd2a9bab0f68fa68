"""How likely a model held the tokens of a text."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np


_LEAST = -9999.0  # of a token that is impossible, as OpenAI writes it: JSON has no infinity


class TokenLogprob(NamedTuple):
    """A token of a text, by the model's own distribution: before bias, penalties, grammar and temperature.

    Attributes:
        token: its id.
        start: of how many characters the text before it has.
        logprob: natural logarithm of its probability; None for a text's first token, which nothing precedes.
        top: ids and logprobs of the likeliest tokens in its place, likeliest first.
    """

    token: int
    start: int
    logprob: float | None
    top: tuple[tuple[int, float], ...]


def token_logprob(logits: np.ndarray, token: int, start: int, top: int) -> TokenLogprob:
    """The record of a token that logits, float32 [vocab], predict."""
    import numpy as np

    values = logits.astype(np.float64)
    values -= values.max()
    values -= np.log(np.exp(values).sum())
    values = np.maximum(values, _LEAST)
    count = min(top, len(values))
    best = np.argpartition(-values, count - 1)[:count] if count else np.empty(0, np.intp)
    ranked = sorted(best.tolist(), key=lambda index: (-values[index], index))
    pairs = tuple((index, float(values[index])) for index in ranked)
    return TokenLogprob(token, start, float(values[token]), pairs)
