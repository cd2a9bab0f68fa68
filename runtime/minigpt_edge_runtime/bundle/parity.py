"""A model file's next-token distributions against the checkpoint's, on tokens that came with the bundle."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from minigpt_edge_runtime.engines.open import open_engine
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.files import read_json
from minigpt_edge_runtime.scoring.likelihood import divergence_of_top, log_softmax, picked

REFERENCE = "reference.json"
TOP = 32  # of the checkpoint's likeliest tokens are kept at each position


def make_reference(tokens: Any, logits: Any) -> dict[str, Any]:
    """What a bundle keeps of a checkpoint's logits.

    Args:
        tokens: int [T], the first one starting the document.
        logits: float32 [T, vocab], the checkpoint's after each token.

    Returns:
        {"format", "tokens", "top": ids [T][TOP], "log_probabilities": theirs, "nll": of tokens 1…, in nats}.
    """
    tokens = np.asarray(tokens)
    log_p = log_softmax(np.asarray(logits, dtype=np.float64))
    top = np.argsort(-log_p, axis=-1, kind="stable")[:, :TOP]
    kept = np.take_along_axis(log_p, top, -1)
    return {
        "format": 1,
        "tokens": tokens.tolist(),
        "top": top.tolist(),
        "log_probabilities": [[round(float(value), 4) for value in row] for row in kept],
        "nll": [round(-float(value), 4) for value in picked(log_p, tokens[1:])],
    }


def compare_with_reference(model: Path, reference: Path, threads: int | None) -> dict[str, float]:
    """Evaluate a model file on the reference's tokens.

    Returns:
        "kl_mean" (nats; over the kept tokens and the rest as one, so at most the true divergence),
        "argmax_agreement", and "bits_ratio", the file's bits ÷ the checkpoint's.

    Raises:
        EdgeError: the reference is damaged, or of another vocabulary.
    """
    content = read_json(reference)
    try:
        tokens, nll = [int(token) for token in content["tokens"]], np.array(content["nll"], dtype=np.float64)
        top = np.array(content["top"], dtype=np.int64)
        expected = np.array(content["log_probabilities"], dtype=np.float64)
        fits = len(tokens) == len(top) == len(nll) + 1 and top.shape == expected.shape and top.ndim == 2
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise EdgeError(f"{reference} is damaged ({error!r})", "copy or build the bundle again") from error
    fits = fits and bool(np.isfinite(expected).all() and np.isfinite(nll).all())
    with open_engine(model, max(len(tokens), 1), threads, logits_all=True) as engine:
        if not fits or max(*tokens, int(top.max())) >= engine.vocab_size or min(*tokens, int(top.min())) < 0:
            raise EdgeError(f"{reference} does not belong to this model", "copy or build the bundle again")
        logits = engine.logits(tokens).astype(np.float64)
    log_q = log_softmax(logits)
    kl = divergence_of_top(expected, np.take_along_axis(log_q, top, -1))
    own = -picked(log_q, np.array(tokens[1:], dtype=np.int64))
    if not math.isfinite(float(kl.sum())):
        raise EdgeError(f"{model} computes values that are not numbers", "copy or build the bundle again")
    return {
        "kl_mean": float(kl.mean()),
        "argmax_agreement": float((logits.argmax(-1) == top[:, 0]).mean()),
        "bits_ratio": float(own.sum() / nll.sum()) if len(nll) and nll.sum() else 1.0,
    }
