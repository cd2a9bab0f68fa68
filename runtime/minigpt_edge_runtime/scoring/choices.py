"""Likelihoods of continuations, as evaluation harnesses define them: of the tokens that the context lacks."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from minigpt_edge_runtime.engines.engine import Engine, Fork
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.scoring.likelihood import branch_nll


@dataclass(frozen=True)
class Pair:
    """Token ids of a context, at least one, and of what follows it, at least one."""

    context: list[int]
    continuation: list[int]


def encode_pair(engine: Engine, start: int, context: str, continuation: str) -> Pair:
    """The tokens of both together, parted where the context's own tokens end; `start` precedes them.

    Blank space at the context's end belongs to the continuation, as in lm-evaluation-harness.

    Raises:
        EdgeError: both together have no more tokens than the context.
    """
    kept = context.rstrip()
    continuation = context[len(kept) :] + continuation
    whole, before = engine.tokenize(kept + continuation), len(engine.tokenize(kept))
    if len(whole) <= before:
        raise EdgeError(
            f"the continuation {continuation!r} adds no token to its context", "leave the question out"
        )
    return Pair([start, *whole[:before]], whole[before:])


def score_pairs(engine: Engine, questions: Sequence[Sequence[Pair]]) -> Iterator[list[tuple[float, bool]]]:
    """Log-likelihood in nats of each continuation given its context, and whether it is the likeliest.

    What all pairs of a question begin with is evaluated once; use the engine for nothing else meanwhile.
    A text longer than the engine's context loses its beginning.

    Raises:
        EdgeError: the model computes values that are not numbers.
        ValueError: the engine was opened without `logits_all`, or a continuation alone is too long for it.
    """
    forks = [_forks(pairs, engine.context_length) for pairs in questions]
    scored = branch_nll(engine, [fork for some in forks for fork in some])
    for pairs, some in zip(questions, forks, strict=True):
        found = [branch for _ in some for branch in next(scored)]
        scores = []
        for pair, (nll, likeliest) in zip(pairs, found, strict=True):
            count = len(pair.continuation)
            scores.append((-float(nll[-count:].sum()), bool(likeliest[-count:].all())))
        if not all(math.isfinite(score) for score, _ in scores):
            raise EdgeError("the model computes values that are not numbers", "export the model again")
        yield scores


def _forks(pairs: Sequence[Pair], context_length: int) -> list[Fork]:
    """One for all pairs, or each on its own where they begin differently, as texts that were cut may."""
    texts = [_fitted(pair, context_length) for pair in pairs]
    firsts = [len(text) - len(pair.continuation) for text, pair in zip(texts, pairs, strict=True)]
    shared = min(len(os.path.commonprefix(texts)), *firsts)
    if not shared:
        return [Fork(text[:first], [text[first:]]) for text, first in zip(texts, firsts, strict=True)]
    return [Fork(texts[0][:shared], [text[shared:] for text in texts])]


def _fitted(pair: Pair, context_length: int) -> list[int]:
    if len(pair.continuation) >= context_length:
        raise ValueError(f"a continuation has {len(pair.continuation)} tokens, the context {context_length}")
    return [*pair.context, *pair.continuation][-context_length:]
