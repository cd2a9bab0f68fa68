"""What every timing process does: prefill and decode one model, and say how fast, or how right."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol


class Model(Protocol):
    """A loaded model with one sequence in its cache. Every call ends with the greedy pick."""

    vocab_size: int
    versions: dict[str, str]
    logits: Any  # of the last token, float32 [vocabulary]; not in genai's

    def prefill(self, tokens: list[int]) -> int:
        """Empty the cache, evaluate the prompt."""
        ...

    def step(self, token: int) -> int:
        """Evaluate one more token."""
        ...


def run(load: Callable[[int], Model], given: argparse.Namespace) -> None:
    """Load with a cache just large enough, measure what was asked for; JSON on stdout."""
    print(json.dumps(score(load, given.score) if given.score else measure(load, given)))


def arguments(description: str, *apis: str) -> argparse.Namespace:
    """The command line of a timing process."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("model", type=Path)
    if apis:
        parser.add_argument("--api", choices=apis, default=apis[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--depths", type=int, nargs="+", default=[16, 512], help="tokens before decoding")
    parser.add_argument("--generate-tokens", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--score", type=Path, help="compare with a file of reference.py, no timing")
    return parser.parse_args()


def measure(load: Callable[[int], Model], given: argparse.Namespace) -> dict[str, Any]:
    """Speed and memory: one warm-up, then `repeat` samples."""
    import numpy as np

    before = _status("VmRSS")
    began = time.perf_counter()
    longest = max(given.prompt_tokens, *given.depths)
    model = load(longest + given.generate_tokens + 1)
    loaded = time.perf_counter() - began
    # the first ids are special tokens
    prompt = np.random.default_rng(0).integers(3, model.vocab_size, longest).tolist()
    samples: dict[str, list[float]] = {}
    for _ in range(given.repeat + 1):
        began = time.perf_counter()
        model.prefill(prompt[: given.prompt_tokens])
        rate = given.prompt_tokens / (time.perf_counter() - began)
        samples.setdefault(f"prefill {given.prompt_tokens}", []).append(rate)
        for depth in given.depths:
            token = model.prefill(prompt[:depth])
            began = time.perf_counter()
            for _ in range(given.generate_tokens):
                token = model.step(token)
            rate = given.generate_tokens / (time.perf_counter() - began)
            samples.setdefault(f"decode at {depth}", []).append(rate)
    return {
        "tokens_per_second": {kind: rates[1:] for kind, rates in samples.items()},
        "load_seconds": loaded,
        "rss_before_load": before,
        "peak_rss": _status("VmHWM"),
        "versions": model.versions,
    }


def score(load: Callable[[int], Model], reference: Path) -> dict[str, float]:
    """How far the model is from the checkpoint, decoding held-out text token by token.

    Returns:
        "kl" (nats per token), "argmax" (share of equal greedy picks), and "nll" of the text with
        "reference_nll", the checkpoint's own.
    """
    import numpy as np

    with np.load(reference) as file:
        tokens, expected = file["tokens"], file["logprobs"]
    model = load(tokens.shape[1])
    kl, equal, nll = [], [], []
    for window, wanted in zip(tokens.tolist(), expected, strict=True):
        for place, token in enumerate(window):
            picked = model.step(token) if place else model.prefill([token])
            found = model.logits.astype(np.float64)
            found -= found.max()
            found -= np.log(np.exp(found).sum())
            kl.append(float((np.exp(wanted[place]) * (wanted[place] - found)).sum()))
            equal.append(picked == int(wanted[place].argmax()))
            if place + 1 < len(window):
                nll.append((-found[window[place + 1]], -wanted[place, window[place + 1]]))
    ours, theirs = np.mean(nll, axis=0)
    return {
        "kl": round(float(np.mean(kl)), 6),
        "argmax": round(float(np.mean(equal)), 5),
        "nll": round(float(ours), 5),
        "reference_nll": round(float(theirs), 5),
    }


def _status(field: str) -> int:
    """A memory figure of this process in bytes (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise LookupError(field)
