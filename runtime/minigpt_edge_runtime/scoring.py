"""Negative log-likelihood of held-out windows under a model file."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt_edge_runtime.engine import Engine, open_engine
from minigpt_edge_runtime.errors import EdgeError

if TYPE_CHECKING:
    import numpy as np

_ROWS = 64  # rows of logits whose exponentials are held at once


@dataclass(frozen=True)
class Window:
    """A held-out text with its size in bytes and in tokens of the base model."""

    text: str
    bytes: int
    base_tokens: int


def read_windows(content: Any) -> list[Window]:
    """The windows of a texts.json's content; EdgeError if it is none, is empty, or a window is damaged."""
    hint = "make the text file again with the corpus stage"
    try:
        windows = [Window(str(w["text"]), int(w["bytes"]), int(w["base_tokens"])) for w in content["windows"]]
    except (TypeError, KeyError, ValueError) as error:
        raise EdgeError(f"this is not a texts file: {error!r} in its windows", hint) from error
    if not windows:
        raise EdgeError("the texts file has no windows", hint)
    for number, window in enumerate(windows):
        size = len(window.text.encode("utf-8", errors="surrogatepass"))
        if size != window.bytes or not window.text or window.base_tokens < 1:
            raise EdgeError(
                f"window {number} of the texts file is damaged ({size} bytes, not {window.bytes})", hint
            )
    return windows


def score_windows(
    path: Path,
    document_start: str | None,
    windows: Sequence[Window],
    threads: int,
    context_length: int | None,
    report: Callable[[], None],
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Score each window on its own.

    Returns:
        per window {"nll" (nats), "tokens", "bytes", "base_tokens"}, and the engine's description.

    Raises:
        EdgeError: a window is longer than the context, or the vocabulary loses bytes of it.
    """
    with open_engine(path, 32, threads) as engine:  # tokenizing alone needs no large cache
        start = engine.document_start(document_start)
        tokenized = [_exact_tokens(engine, number, window) for number, window in enumerate(windows)]
    longest = max(len(tokens) for tokens in tokenized) + 1
    if context_length is not None and longest > context_length:
        raise EdgeError(
            f"the longest window has {longest:,} tokens, the context holds {context_length:,}",
            "use a longer context or shorter windows",
        )
    scored = []
    with open_engine(path, context_length or longest, threads, logits_all=True) as engine:
        for window, tokens in zip(windows, tokenized, strict=True):
            nll = token_nll(engine, [start, *tokens])
            if not math.isfinite(float(nll.sum())):
                raise EdgeError(f"{path} computes values that are not numbers", "export the model again")
            scored.append(
                {
                    "nll": float(nll.sum()),
                    "tokens": len(tokens),
                    "bytes": window.bytes,
                    "base_tokens": window.base_tokens,
                }
            )
            report()
        return scored, dict(engine.description())


def token_nll(engine: Engine, tokens: Sequence[int]) -> np.ndarray:
    """Negative log-likelihood (nats) of tokens 1… given those before: float64 [T - 1]."""
    import numpy as np

    targets = np.asarray(tokens[1:], dtype=np.int64)
    result = np.empty(len(targets))
    at = 0
    for piece in engine.score(tokens[:-1]):
        for row in range(0, len(piece), _ROWS):
            logits = piece[row : row + _ROWS]
            wanted = targets[at : at + len(logits)]
            top = logits.max(axis=1, keepdims=True)
            total = np.exp(logits - top).sum(axis=1, dtype=np.float64)
            picked = logits[np.arange(len(logits)), wanted].astype(np.float64)
            result[at : at + len(logits)] = np.log(total) + top[:, 0] - picked
            at += len(logits)
    return result


def summarize(scored: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Totals over windows.

    `stderr` is bits_per_byte's standard error over windows (linearised ratio of sums); None for one window.
    """
    nll, size = sum(w["nll"] for w in scored), sum(w["bytes"] for w in scored)
    base_tokens, count = sum(w["base_tokens"] for w in scored), len(scored)
    rate = nll / size
    squares = sum((w["nll"] - rate * w["bytes"]) ** 2 for w in scored)
    stderr = math.sqrt(squares * count / (count - 1)) / size / math.log(2) if count > 1 else None
    return {
        "bits_per_byte": rate / math.log(2),
        "stderr": stderr,
        "perplexity_per_base_token": math.exp(min(nll / base_tokens, 700.0)),
        "nll": nll,
        "windows": count,
        "bytes": size,
        "base_tokens": base_tokens,
        "tokens": sum(w["tokens"] for w in scored),
    }


def _exact_tokens(engine: Engine, number: int, window: Window) -> list[int]:
    tokens = engine.tokenize(window.text)
    if engine.detokenize(tokens) != window.text.encode("utf-8"):
        raise EdgeError(
            f"the model's vocabulary loses bytes of window {number}, so its score would mean nothing",
            "export the model again with every byte in its vocabulary",
        )
    return tokens
