"""How likely a model held the tokens of a text."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from minigpt_edge_runtime.generate.sampling import largest

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
    highest = logits.max()
    total = float(highest) + float(np.log(np.exp(logits - highest).sum(dtype=np.float64)))

    def logprob(index: int) -> float:
        return max(float(logits[index]) - total, _LEAST)

    ids = largest(logits, top).tolist() if 0 < top < len(logits) else np.argsort(-logits)[:top].tolist()
    return TokenLogprob(token, start, logprob(token), tuple((index, logprob(index)) for index in ids))
