"""Likelihoods and divergences of logits: the one place where they are computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from minigpt_edge_runtime.engines.engine import Engine, Fork

_ROWS = 64  # rows of logits whose exponentials are in memory at once


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities in nats: [n, vocab], float32 or float64 as the logits; sums are float64."""
    shifted = logits - logits.max(-1, keepdims=True)
    total: np.ndarray = np.exp(shifted).sum(-1, keepdims=True, dtype=np.float64)
    return shifted - np.log(total).astype(shifted.dtype)


def divergence(log_p: np.ndarray, log_q: np.ndarray) -> np.ndarray:
    """KL(P || Q) in nats of log-probabilities: float32 [n, vocab] twice -> float64 [n]."""
    return np.einsum("nv,nv->n", np.exp(log_p), log_p - log_q, dtype=np.float64)


def divergence_of_top(log_p: np.ndarray, log_q: np.ndarray) -> np.ndarray:
    """KL(P || Q) in nats where only some tokens' log-probabilities are known: float64 [n, k] twice -> [n].

    The other tokens count as one, so this is at most the true divergence.
    """
    rest_p, rest_q = (np.clip(1 - np.exp(side).sum(-1), 1e-9, 1) for side in (log_p, log_q))
    return (np.exp(log_p) * (log_p - log_q)).sum(-1) + rest_p * np.log(rest_p / rest_q)


def picked(log_p: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """The log-probability of one token per row: [n, vocab] and int [m], m at most n -> [m]."""
    return log_p[np.arange(len(tokens)), tokens]


def token_nll(engine: Engine, tokens: Sequence[int], first: int = 1) -> np.ndarray:
    """Negative log-likelihood (nats) of tokens `first`… given those before: float64 [T - first]."""
    targets = np.asarray(tokens[1:], dtype=np.int64)
    result = np.empty(len(targets))
    at = 0
    for piece in engine.score(tokens[:-1]):
        skipped = max(first - 1 - at, 0)
        if skipped < len(piece):
            rows = slice(at + skipped, at + len(piece))
            result[rows], _ = _nll(piece[skipped:], targets[rows])
        at += len(piece)
    return result[first - 1 :]


def branch_nll(engine: Engine, forks: Sequence[Fork]) -> Iterator[list[tuple[np.ndarray, np.ndarray]]]:
    """Of every token of several texts' continuations, fork by fork.

    Yields:
        For each branch the nll in nats, float64 [len(branch)], and whether the token is the likeliest, bool.
    """
    found = [
        [(np.empty(len(branch)), np.empty(len(branch), dtype=bool)) for branch in fork.branches]
        for fork in forks
    ]
    done = 0
    for index, branch, at, rows in engine.forks(forks):
        yield from found[done:index]
        done = index
        targets = np.asarray(forks[index].branches[branch][at : at + len(rows)], dtype=np.int64)
        nll, likeliest = found[index][branch]
        nll[at : at + len(rows)], likeliest[at : at + len(rows)] = _nll(rows, targets)
    yield from found[done:]


def _nll(logits: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of a target per row of logits [n, vocab]: nll in nats, float64 [n], and whether it is the likeliest."""
    nll, likeliest = np.empty(len(targets)), np.empty(len(targets), dtype=bool)
    for row in range(0, len(targets), _ROWS):
        some, wanted = logits[row : row + _ROWS], targets[row : row + _ROWS]
        top = some.max(axis=1, keepdims=True)
        total = np.exp(some - top).sum(axis=1, dtype=np.float64)
        picked = some[np.arange(len(some)), wanted]
        nll[row : row + _ROWS] = np.log(total) + top[:, 0] - picked.astype(np.float64)
        likeliest[row : row + _ROWS] = picked == top[:, 0]
    return nll, likeliest
