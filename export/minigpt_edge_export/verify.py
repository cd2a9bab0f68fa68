"""The gate after export: a file must give the checkpoint's logits, and the tokenizer's ids on every text.

Each level of quantization has thresholds of its own.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from minigpt_edge_export.scripts import TEN_SCRIPTS
from minigpt_edge_export.verify_tokens import TokenParity, verify_tokenizer
from minigpt_edge_runtime.engines.open import open_engine
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.files import os_error, write_json
from minigpt_edge_runtime.scoring.likelihood import divergence, log_softmax, picked


@dataclass(frozen=True)
class Distance:
    """How far a file's next-token distributions are, or may be, from the checkpoint's.

    KL divergences (checkpoint from file) are in nats; `argmax_agreement` is the share of positions where both
    find the same token most likely; `bits_ratio` is the file's bits per byte ÷ the checkpoint's there.
    """

    kl_mean: float
    kl_max: float
    argmax_agreement: float
    bits_ratio: float


# Bits a weight has left -> threshold. The law model (78 M parameters) against torch in float32, 1,024 tokens:
# F16 and ONNX fp32 are off by 1e-5, with the same likeliest token at all positions; the quantized files' own
# figures are in docs/decisions.md. What is built wrongly (a lost bias, a turned matrix) is off by far more.
THRESHOLDS = {
    16: Distance(1e-3, 0.1, 0.99, 1.001),
    8: Distance(0.02, 1.0, 0.93, 1.02),
    5: Distance(0.1, 3.0, 0.85, 1.06),
    4: Distance(0.25, 6.0, 0.7, 1.15),
    2: Distance(1.5, 20.0, 0.4, 2.0),
}


def threshold_of(kind: str) -> Distance:
    """The threshold of a target's type: "f16", "q4_k_m", "int4-64", …"""
    found = re.search(r"\d+", kind)
    bits = int(found[0]) if found else 16
    return THRESHOLDS[max((level for level in THRESHOLDS if level <= bits), default=2)]


@dataclass(frozen=True)
class LogitParity(Distance):
    """What was measured, over `tokens` positions."""

    tokens: int

    def within(self, limit: Distance) -> bool:
        """Whether it is within a threshold; NaN is not."""
        small = self.kl_mean <= limit.kl_mean and self.kl_max <= limit.kl_max
        right = self.argmax_agreement >= limit.argmax_agreement and self.bits_ratio <= limit.bits_ratio
        return self.tokens > 0 and small and right


def verify_logits(model_path: Path, reference: Path, threads: int) -> LogitParity:
    """Compare a file's logits with the checkpoint's; each row is evaluated from an empty cache.

    Args:
        model_path: the file.
        reference: a safetensors file {"tokens": int32 [n, T], "logits": float16 or float32 [n, T, vocab]}
            that the caller wrote from the checkpoint.
        threads: CPU threads.

    Raises:
        EdgeError: the reference is damaged or has another shape, or the file can't be loaded.
    """
    divergences: list[np.ndarray] = []
    same, likelihoods = 0, np.zeros(2)
    try:
        with safe_open(reference, framework="np") as file:
            logits, tokens = file.get_slice("logits"), file.get_tensor("tokens")
            shape = tuple(logits.get_shape())
            if tokens.ndim != 2 or shape[:-1] != tokens.shape:
                raise EdgeError(f"{reference}: logits {shape} do not belong to tokens {tokens.shape}", None)
            with open_engine(model_path, max(tokens.shape[1], 1), threads, logits_all=True) as engine:
                if engine.vocab_size != shape[-1]:
                    raise EdgeError(
                        f"{model_path} has {engine.vocab_size} tokens, the checkpoint {shape[-1]}", None
                    )
                for row in range(len(tokens)):
                    start = 0
                    for found in engine.score(tokens[row].tolist()):
                        expected = logits[row, start : start + len(found)].astype(np.float32)
                        log_p, log_q = log_softmax(expected), log_softmax(found)
                        divergences.append(divergence(log_p, log_q))
                        same += int((expected.argmax(-1) == found.argmax(-1)).sum())
                        following = tokens[row, start + 1 : start + 1 + len(found)]
                        likelihoods -= [
                            picked(log, following).sum(dtype=np.float64) for log in (log_q, log_p)
                        ]
                        start += len(found)
    except SafetensorError as error:
        raise EdgeError(f"{reference} is not a whole reference file ({error})", "write it again") from error
    except OSError as error:
        raise os_error(error, reference) from error
    kl = np.concatenate([*divergences, np.empty(0)])
    if not kl.size:
        raise EdgeError(f"{reference} holds no tokens to compare", "give it some text")
    # a reference of single tokens has no next token, so nothing to compare likelihoods on
    ratio = float(likelihoods[0] / likelihoods[1]) if likelihoods[1] else 1.0
    return LogitParity(float(kl.mean()), float(kl.max()), same / kl.size, ratio, int(kl.size))


@dataclass(frozen=True)
class Tokenization:
    """What token ids are compared with and on: the checkpoint's tokenizer, and held-out texts.

    `TEN_SCRIPTS` are compared too.
    """

    tokenizer_json: Path
    texts: Sequence[str]


def check(
    model_path: Path,
    *,
    kind: str,
    reference: Path,
    evidence: Path,
    threads: int,
    tokenization: Tokenization | None = None,
) -> tuple[LogitParity, TokenParity | None]:
    """Let a file pass or raise; the figures are written to `evidence` either way.

    Args:
        model_path: the file.
        kind: its type, such as "f16" or "q4_k_m": the threshold depends on it.
        reference: see `verify_logits`.
        evidence: a JSON file to write.
        threads: CPU threads.
        tokenization: None leaves token ids alone, as quantizing does.

    Raises:
        EdgeError: the logits or the token ids differ by more than the thresholds allow.
    """
    limit = threshold_of(kind)
    logits = verify_logits(model_path, reference, threads)
    tokens = None
    if tokenization is not None:
        texts = [*tokenization.texts, *TEN_SCRIPTS.values()]
        tokens = verify_tokenizer(model_path, tokenization.tokenizer_json, texts)
    passed = logits.within(limit) and (tokens is None or tokens.good)
    figures: dict[str, Any] = {
        "passed": passed,
        "type": kind,
        "thresholds": dataclasses.asdict(limit),
        "logits": dataclasses.asdict(logits),
        "tokens": dataclasses.asdict(tokens) if tokens else None,
    }
    write_json(evidence, figures)
    if not passed:
        raise EdgeError(
            f"{kind} of {model_path.name} does not match its checkpoint: "
            + "; ".join(_reasons(logits, limit, tokens)),
            f"the evidence is in {evidence}",
        )
    return logits, tokens


def _reasons(logits: LogitParity, limit: Distance, tokens: TokenParity | None) -> list[str]:
    reasons = []
    if not logits.within(limit):
        reasons.append(
            f"logits differ (KL {logits.kl_mean:.2g} mean, {logits.kl_max:.2g} at most, "
            f"{logits.argmax_agreement:.1%} of the most likely tokens agree, bits per byte "
            f"x {logits.bits_ratio:.3f}; allowed are {limit.kl_mean:g}, {limit.kl_max:g}, "
            f"{limit.argmax_agreement:.0%} and {limit.bits_ratio:g})"
        )
    return reasons + (tokens.reasons if tokens else [])
